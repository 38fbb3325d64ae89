-- Jobs that are sent again: replays, and the held jobs of routes that take jobs again.

-- name: begin_replays
-- Takes the replays that are due. One that a host began and did not end is due again after a minute.
-- $1 how many at most
UPDATE delivery_replays AS replay SET run_at = now() + interval '1 minute'
FROM (
    SELECT tenant_id, replay_id
    FROM delivery_replays
    WHERE status IN ('running', 'cancelling') AND run_at <= now()
    ORDER BY run_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
) AS due
WHERE replay.tenant_id = due.tenant_id AND replay.replay_id = due.replay_id
RETURNING replay.tenant_id, replay.replay_id, replay.route_id::text AS route_id, kind, job_id, since, until, rate_per_s,
          status, phase, cursor::text AS cursor, sent, examined, lost;

-- name: find_route
-- $1 tenant, $2 route
SELECT id::text AS route_id, destination_type, topic_filter, payload_filter, order_by
FROM message_routes
WHERE tenant_id = $1 AND id = $2::text::uuid;

-- name: claim_undelivered
-- Takes the next jobs that failed, in the order of their messages: jobs of one batch were made at the same time, and the
-- longer one of two ids of a route has the higher sequence. From now on the replay's copies are the live ones.
-- Jobs that the replay took before it was interrupted are taken again.
-- $1 tenant, $2 route, $3 since, $4 until, $5, $6 time and job after which to begin, $7 replay, $8 how many at most,
-- $9 only jobs that the replay took before
WITH next AS (
    SELECT job_id, first_attempt_at AS made_at
    FROM delivery_jobs
    WHERE tenant_id = $1 AND route_id = $2 AND status <> 'delivered'
      AND last_attempt_at >= $3 AND last_attempt_at < $4
      AND ($5::timestamptz IS NULL
           OR (first_attempt_at, length(job_id), job_id COLLATE "C") > ($5, length($6::text), $6::text))
      AND ((status IN ('failing', 'refused', 'dead') AND NOT $9::boolean) OR (status = 'waiting' AND replay_id = $7))
      AND (content IS NOT NULL OR starts_with(job_id, 'TELEMETRY-'))
    ORDER BY first_attempt_at, length(job_id), job_id COLLATE "C"
    LIMIT $8
),
locked AS (
    SELECT job.job_id
    FROM delivery_jobs AS job JOIN next USING (job_id)
    WHERE job.tenant_id = $1
    -- as other statements lock them
    ORDER BY job.job_id COLLATE "C"
    FOR UPDATE OF job
)
UPDATE delivery_jobs AS job SET status = 'waiting', replay_id = $7, only_copy = NULL, refusal = NULL
FROM next JOIN locked USING (job_id)
WHERE job.tenant_id = $1 AND job.job_id = next.job_id
RETURNING job.job_id, job.content, next.made_at;

-- name: claim_one
-- $1 tenant, $2 job, $3 replay
UPDATE delivery_jobs SET status = 'waiting', replay_id = $3, only_copy = NULL, refusal = NULL
WHERE tenant_id = $1 AND job_id = $2
RETURNING job_id, content;

-- name: give_up
-- Jobs of which nothing has the message any more.
-- $1 tenant, $2 jobs, $3 replay
UPDATE delivery_jobs SET status = 'dead'
WHERE tenant_id = $1 AND job_id = ANY ($2::text[]) AND status = 'waiting' AND replay_id = $3;

-- name: find_rows
-- The next telemetry rows of a tenant, and whether each has a job for the route.
-- $1 tenant, $2 route, $3 since, $4 until, $5, $6, $7 device, time and sequence after which to begin, $8 device: NULL
-- for all, $9 how many at most
SELECT
    device_id, time, seq, site_id, msg_type, metrics::text AS metrics,
    EXISTS (
        SELECT FROM delivery_jobs AS job
        WHERE job.tenant_id = $1 AND job.route_id = $2
          AND split_part(job.job_id, '-', 2) = measured.seq::text
          AND left(split_part(job.job_id, '-', 3), 16)
              = (extract(epoch FROM measured.time) * 1000000)::bigint::text
    ) AS has_job
FROM (
    SELECT device_id, time, seq, site_id, msg_type, metrics
    FROM telemetry
    WHERE tenant_id = $1 AND time >= $3 AND time < $4
      AND ($8::text IS NULL OR device_id = $8)
      -- no rows that were imported, of which there is no message
      AND seq >= 0
      AND ($5::text IS NULL OR (device_id, time, seq) > ($5, $6::timestamptz, $7::bigint))
    ORDER BY device_id, time, seq
    LIMIT $9
) AS measured
ORDER BY device_id, time, seq;

-- name: find_row
-- $1 tenant, $2 time, $3 sequence
SELECT device_id, time, seq, site_id, msg_type, metrics::text AS metrics
FROM telemetry
WHERE tenant_id = $1 AND time = $2 AND seq = $3;

-- name: end_run
-- Notes what a run has done. A replay that was cancelled meanwhile stays so.
-- $1 tenant, $2 replay, $3 phase, $4 cursor, $5 sent, $6 examined, $7 lost, $8 status
UPDATE delivery_replays
SET phase = $3, cursor = $4::text::jsonb, sent = $5, examined = $6, lost = $7, run_at = now(),
    status = CASE WHEN $8 = 'running' THEN status ELSE $8 END,
    finished_at = CASE WHEN $8 <> 'running' THEN now() END
WHERE tenant_id = $1 AND replay_id = $2;

-- name: claim_held
-- Takes held jobs of routes that take jobs, or that are gone. They stay held until their copies are published.
-- $1 the release, $2 how many at most
WITH RECURSIVE route_with_held_jobs AS (
    (SELECT tenant_id, route_id FROM delivery_jobs WHERE status = 'held' ORDER BY tenant_id, route_id LIMIT 1)
    UNION ALL
    SELECT next.tenant_id, next.route_id
    FROM route_with_held_jobs AS last CROSS JOIN LATERAL (
        SELECT tenant_id, route_id
        FROM delivery_jobs
        WHERE status = 'held' AND (tenant_id, route_id) > (last.tenant_id, last.route_id)
        ORDER BY tenant_id, route_id
        LIMIT 1
    ) AS next
),
ready AS (
    SELECT held.tenant_id, held.route_id, route.destination_type, route.order_by
    FROM route_with_held_jobs AS held
    LEFT JOIN message_routes AS route ON route.tenant_id = held.tenant_id AND route.id::text = held.route_id
    WHERE route.id IS NULL OR CASE WHEN is_enabled THEN paused_at IS NULL ELSE disabled_reason IS NULL END
),
next AS (
    SELECT job.tenant_id, job.job_id, coalesce(ready.destination_type, job.destination_type) AS destination_type,
           ready.order_by, job.made_at
    FROM ready CROSS JOIN LATERAL (
        SELECT tenant_id, job_id, destination_type, first_attempt_at AS made_at
        FROM delivery_jobs
        WHERE status = 'held' AND tenant_id = ready.tenant_id AND route_id = ready.route_id
        ORDER BY first_attempt_at, length(job_id), job_id COLLATE "C"
        LIMIT greatest(1, $2::integer / (SELECT count(*) FROM ready))
    ) AS job
    LIMIT $2
)
UPDATE delivery_jobs AS job SET replay_id = $1, only_copy = NULL
FROM next
WHERE job.tenant_id = next.tenant_id AND job.job_id = next.job_id AND job.status = 'held'
RETURNING job.tenant_id, job.job_id, job.route_id, job.content, next.destination_type, next.order_by, next.made_at;

-- name: end_release
-- A job that was held again meanwhile has no release any more.
-- $1 the release
UPDATE delivery_jobs SET status = 'waiting' WHERE status = 'held' AND replay_id = $1;
