-- Delivery jobs and their attempts; the management API writes the routes.

-- name: find_route
-- A tenant's route, and whether the job was delivered already. Returns no row when the route does not exist.
-- $1 tenant, $2 route, $3 job
SELECT
    route.destination_type,
    route.destination_config::text AS destination_config,
    route.is_enabled,
    coalesce(job.status = 'delivered', FALSE) AS is_delivered
FROM message_routes AS route
LEFT JOIN delivery_jobs AS job ON job.tenant_id = route.tenant_id AND job.job_id = $3
WHERE route.tenant_id = $1 AND route.id = $2;

-- name: find_route_type
-- The type of a tenant's route.
-- $1 tenant, $2 route
SELECT destination_type FROM message_routes WHERE tenant_id = $1 AND id = $2;

-- name: record_attempt
-- Logs and numbers one attempt, updates the job's state, and disables the route if its endpoint asked for it.
-- A delivered job stays delivered, even if a concurrent attempt failed.
-- $1 tenant, $2 job, $3 route, $4 type, $5 status, $6 started at, $7 duration ms, $8 outcome, $9 status code,
-- $10 error code, $11 response excerpt, $12 disable the route
WITH job AS (
    INSERT INTO delivery_jobs AS known (
        tenant_id, job_id, route_id, destination_type, status, attempts, delivered_at
    )
    VALUES ($1, $2, $3, $4, $5, 1, CASE WHEN $5 = 'delivered' THEN now() END)
    ON CONFLICT (tenant_id, job_id) DO UPDATE SET
        status = CASE WHEN known.status = 'delivered' THEN known.status ELSE excluded.status END,
        attempts = known.attempts + 1,
        last_attempt_at = excluded.last_attempt_at,
        delivered_at = coalesce(known.delivered_at, excluded.delivered_at)
    RETURNING tenant_id, job_id, attempts
),
disabled AS (
    UPDATE message_routes SET is_enabled = FALSE, updated_at = now()
    WHERE $12 AND tenant_id = $1 AND id::text = $3
)
INSERT INTO delivery_attempts (
    tenant_id, job_id, attempt, route_id, destination_type, started_at, duration_ms,
    outcome, status_code, error_code, response_excerpt
)
SELECT tenant_id, job_id, attempts, $3, $4, $6, $7, $8, $9, $10, $11 FROM job;


-- name: forget_old
-- Removes jobs that were last tried longer ago than $1, and by cascade their attempts; $2 at a time, so that no
-- statement holds its locks for long.
-- $1 age, $2 how many at most
DELETE FROM delivery_jobs
WHERE (tenant_id, job_id) IN (
    SELECT tenant_id, job_id FROM delivery_jobs WHERE last_attempt_at < now() - $1::interval LIMIT $2
);
