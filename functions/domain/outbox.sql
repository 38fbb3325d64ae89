-- Writes jobs and other messages that are published after the commit. `functions/route_delivery/outbox.py` publishes.

-- name: add_jobs
-- Makes the jobs that do not exist yet, and queues those that are to be published. A job that exists already, whatever
-- became of it, is not made again. In the order of the key, so that two hosts with the same jobs do not deadlock.
-- $1 tenants, $2 jobs, $3 routes, $4 types, $5 contents, $6 refusals, $7 subjects (NULL: not published)
WITH given AS (
    SELECT *
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::text[]
    ) WITH ORDINALITY AS job (
        tenant_id, job_id, route_id, destination_type, content, refusal, subject, place
    )
),
made AS (
    INSERT INTO delivery_jobs (
        tenant_id, job_id, route_id, destination_type, status, attempts, size_bytes, content, subject, refusal
    )
    SELECT tenant_id, job_id, route_id, destination_type, CASE WHEN refusal IS NULL THEN 'waiting' ELSE 'refused' END,
           0, CASE WHEN subject IS NULL THEN 0 WHEN refusal IS NULL THEN octet_length(content)
                -- and its letter's headers: `REFUSED_LETTER_BYTES`
                ELSE octet_length(content) + 1000 END,
           CASE WHEN subject IS NOT NULL THEN content END, subject, refusal
    FROM given
    ORDER BY tenant_id, job_id
    ON CONFLICT DO NOTHING
    RETURNING tenant_id, job_id
)
INSERT INTO delivery_outbox (queue, subject, msg_id)
SELECT tenant_id, subject, job_id
FROM given JOIN made USING (tenant_id, job_id)
WHERE subject IS NOT NULL
ORDER BY place

-- name: add_messages
-- Queues messages that are no jobs, in this order.
-- $1 queues, $2 subjects, $3 message ids, $4 bodies
INSERT INTO delivery_outbox (queue, subject, msg_id, body)
SELECT queue, subject, msg_id, body
FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[]) WITH ORDINALITY AS message (queue, subject, msg_id, body, place)
ORDER BY place
