-- name: find
-- $1 tenant, $2 replay
SELECT replay_id, tenant_id, route_id, kind, job_id, since, until, rate_per_s, status, found, sent, examined, lost,
       created_at, finished_at
FROM delivery_replays
WHERE tenant_id = $1 AND replay_id = $2

-- name: page
-- $1 tenant, $2 route, $3, $4 time and replay after which to begin, $5 how many at most
SELECT replay_id, tenant_id, route_id, kind, job_id, since, until, rate_per_s, status, found, sent, examined, lost,
       created_at, finished_at
FROM delivery_replays
WHERE tenant_id = $1 AND ($2::uuid IS NULL OR route_id = $2)
  AND ($3::timestamptz IS NULL OR (created_at, replay_id) < ($3, $4::uuid))
ORDER BY created_at DESC, replay_id DESC
LIMIT $5

-- name: lock_tenant
SELECT pg_advisory_xact_lock(hashtext('delivery_replays/' || $1::text))

-- name: count_running
SELECT count(*) FROM delivery_replays WHERE tenant_id = $1 AND status IN ('running', 'cancelling')

-- name: route
-- A route that was disabled for its endpoint is enabled. `is_stopped`: a person has paused or disabled it.
-- $1 tenant, $2 route
UPDATE message_routes
SET is_enabled = is_enabled OR disabled_reason IS NOT NULL
WHERE tenant_id = $1 AND id = $2
RETURNING paused_at IS NOT NULL OR NOT is_enabled AS is_stopped

-- name: insert
-- $1 tenant, $2 replay, $3 route, $4 kind, $5 since, $6 until, $7 rate
INSERT INTO delivery_replays (tenant_id, replay_id, route_id, kind, since, until, rate_per_s, phase, found)
SELECT $1, $2, $3::uuid, $4, $5, $6, $7, CASE WHEN $4 = 'missing' THEN 'missing' ELSE 'failed' END,
       CASE WHEN $4 = 'missing' THEN 0 ELSE (
           SELECT count(*) FROM (
               SELECT FROM delivery_jobs
               WHERE tenant_id = $1 AND route_id = $3::uuid::text AND status <> 'delivered'
                 AND status IN ('failing', 'refused', 'dead') AND last_attempt_at >= $5 AND last_attempt_at < $6
                 AND (content IS NOT NULL OR starts_with(job_id, 'TELEMETRY-'))
               LIMIT 100000
           ) AS undelivered
       ) END

-- name: insert_job
-- $1 tenant, $2 replay, $3 job
INSERT INTO delivery_replays (tenant_id, replay_id, route_id, kind, job_id, rate_per_s, phase, found)
SELECT $1, $2, route.id, 'job', job.job_id, 1, 'failed', 1
FROM delivery_jobs AS job
JOIN message_routes AS route ON route.tenant_id = job.tenant_id AND route.id::text = job.route_id
WHERE job.tenant_id = $1 AND job.job_id = $3
RETURNING replay_id

-- name: cancel
-- $1 tenant, $2 replay
UPDATE delivery_replays SET status = 'cancelling', run_at = now()
WHERE tenant_id = $1 AND replay_id = $2 AND status = 'running'
