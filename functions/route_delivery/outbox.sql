-- Publishes what `functions/domain/outbox.sql` queues.

-- name: lock
-- Held until the transaction ends: one host at a time hands over, so each queue keeps its order.
SELECT pg_try_advisory_xact_lock(hashtext('delivery_outbox'))

-- name: limit_idle_time
-- A host that stands still while it publishes must not keep the lock from the others.
SET LOCAL idle_in_transaction_session_timeout = '30s'

-- name: take
-- The oldest rows of up to $2 queues, beginning after queue $1, $3 rows and $4 bytes in all. Each queue gets an equal
-- share, so that a long one does not delay the others. A row without a body is a job that is delivered meanwhile.
WITH RECURSIVE following AS (
    (SELECT queue, 1 AS place FROM delivery_outbox WHERE queue > $1::text ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT next.queue, following.place + 1
    FROM following CROSS JOIN LATERAL (
        SELECT queue FROM delivery_outbox WHERE queue > following.queue ORDER BY queue LIMIT 1
    ) AS next
    WHERE following.place < $2::integer
),
share AS (
    SELECT greatest(1, $3::integer / greatest(1, count(*))) AS rows FROM following
),
taken AS (
    SELECT queued.outbox_id, queued.queue, queued.subject, queued.msg_id, coalesce(queued.body, job.content) AS body
    FROM following
    CROSS JOIN share
    CROSS JOIN LATERAL (
        SELECT * FROM delivery_outbox
        WHERE delivery_outbox.queue = following.queue
        ORDER BY outbox_id
        LIMIT share.rows
    ) AS queued
    LEFT JOIN delivery_jobs AS job
        ON job.tenant_id = queued.queue AND job.job_id = queued.msg_id AND queued.body IS NULL
),
measured AS (
    SELECT *, sum(coalesce(octet_length(body), 0)) OVER (ORDER BY queue, outbox_id) AS up_to_bytes FROM taken
)
SELECT outbox_id, queue, subject, msg_id, body
FROM measured
WHERE up_to_bytes - coalesce(octet_length(body), 0) < $4::bigint
ORDER BY queue, outbox_id

-- name: find_doubtful
-- Rows whose publishing a host began and did not finish. Read them with the lock held.
SELECT lower(part) AS first, upper(part) AS beyond FROM delivery_handovers CROSS JOIN unnest(outbox_ids) AS part

-- name: begin
INSERT INTO delivery_handovers (outbox_ids)
SELECT range_agg(int8range(outbox_id, outbox_id, '[]')) FROM unnest($1::bigint[]) AS outbox_id

-- name: remove
-- $1 queues, $2 rows
DELETE FROM delivery_outbox
USING unnest($1::text[], $2::bigint[]) AS done (queue, outbox_id)
WHERE delivery_outbox.queue = done.queue AND delivery_outbox.outbox_id = done.outbox_id

-- name: end
-- With the lock held, every hand-over is of this host or of one that is gone.
DELETE FROM delivery_handovers

-- name: refuse
-- Jobs that no stream can take.
-- $1 tenants, $2 jobs, $3 reason code
UPDATE delivery_jobs SET status = 'refused', refusal = $3
FROM unnest($1::text[], $2::text[]) AS given (tenant_id, job_id)
WHERE delivery_jobs.tenant_id = given.tenant_id AND delivery_jobs.job_id = given.job_id

-- name: count_waiting
SELECT count(*) AS waiting, coalesce(extract(epoch FROM now() - min(stored_at)), 0)::float AS oldest_s
FROM delivery_outbox

-- name: fold
SELECT fold_delivery_counts()
