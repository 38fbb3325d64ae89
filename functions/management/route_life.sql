-- name: pause
-- $1 tenant, $2 route
UPDATE message_routes SET paused_at = coalesce(paused_at, now()), updated_at = now()
WHERE tenant_id = $1 AND id = $2
RETURNING id

-- name: resume
-- $1 tenant, $2 route
UPDATE message_routes SET paused_at = NULL, updated_at = now()
WHERE tenant_id = $1 AND id = $2
RETURNING id

-- name: type
-- $1 tenant, $2 route
SELECT destination_type FROM message_routes WHERE tenant_id = $1 AND id = $2

-- name: states
-- $1 tenant, $2 routes
SELECT route.id, route.paused_at IS NOT NULL AS is_paused, route.paused_at, route.disabled_at, route.disabled_reason,
       CASE WHEN NOT route.is_enabled AND route.disabled_reason IS NOT NULL THEN 'disabled'
            WHEN health.failing_since IS NOT NULL THEN 'failing'
            WHEN health.last_success_at IS NOT NULL THEN 'healthy'
            ELSE 'unknown' END AS state,
       health.failing_since, coalesce(health.failures, 0) AS failures, health.last_failure_at, health.last_success_at,
       health.last_error_code, health.last_status_code, health.clock_started_at,
       coalesce((SELECT sum(failures) FROM endpoint_failures AS hour
                 WHERE hour.tenant_id = route.tenant_id AND hour.endpoint = route.endpoint
                   AND hour.last_at > now() - interval '24 hours'), 0)::bigint AS failures_24h
FROM message_routes AS route
LEFT JOIN endpoint_health AS health ON health.tenant_id = route.tenant_id AND health.endpoint = route.endpoint
WHERE route.tenant_id = $1 AND route.id = ANY ($2::uuid[])

-- name: jobs
-- $1 tenant, $2 route
SELECT is_enabled,
       (SELECT count(*) FROM (SELECT FROM delivery_jobs
                              WHERE tenant_id = $1 AND route_id = $2::uuid::text AND status = 'held'
                              LIMIT 10000) AS held) AS held_jobs,
       (SELECT count(*) FROM (SELECT FROM delivery_jobs
                              WHERE tenant_id = $1 AND route_id = $2::uuid::text AND status <> 'delivered'
                                AND status IN ('failing', 'refused', 'dead')
                              LIMIT 10000) AS undelivered) AS undelivered_jobs
FROM message_routes
WHERE tenant_id = $1 AND id = $2::uuid

-- name: attempt
-- $1 tenant, $2 job
SELECT outcome, status_code, error_code, duration_ms, response_excerpt
FROM delivery_attempts
WHERE tenant_id = $1 AND job_id = $2
ORDER BY attempt
LIMIT 1

-- name: notices
-- $1 tenant, $2 kind, $3 since, $4, $5 time and notice after which to begin, $6 how many at most
SELECT notice_id, tenant_id, kind, data::text, count, created_at, published_at
FROM notices
WHERE tenant_id = $1
  AND ($2::text IS NULL OR kind = $2)
  AND ($3::timestamptz IS NULL OR created_at >= $3)
  AND ($4::timestamptz IS NULL OR (created_at, notice_id) < ($4, $5::uuid))
ORDER BY created_at DESC, notice_id DESC
LIMIT $6
