-- Delivery jobs and their attempts; the management API writes the routes.

-- name: find_routes
-- The routes of several jobs, and whether each job was delivered already. Has no row for a job whose tenant has no
-- such route. `number` is the job's place in the arrays, from 1.
-- $1 tenants, $2 routes, $3 jobs
SELECT
    wanted.number,
    route.destination_type,
    route.destination_config::text AS destination_config,
    route.is_enabled,
    coalesce(job.status = 'delivered', FALSE) AS is_delivered
FROM unnest($1::text[], $2::uuid[], $3::text[]) WITH ORDINALITY AS wanted (tenant_id, route_id, job_id, number)
JOIN message_routes AS route ON route.id = wanted.route_id AND route.tenant_id = wanted.tenant_id
LEFT JOIN delivery_jobs AS job ON job.tenant_id = wanted.tenant_id AND job.job_id = wanted.job_id;

-- name: find_route_type
-- The type of a tenant's route.
-- $1 tenant, $2 route
SELECT destination_type FROM message_routes WHERE tenant_id = $1 AND id = $2;

-- name: record_attempts
-- Logs and numbers one attempt of each of several jobs, updates the jobs' states, and disables the routes whose endpoint
-- asked for it. A delivered job stays delivered, even if a concurrent attempt failed. A route whose configuration has
-- changed since it was read stays enabled: the endpoint that is gone is not its endpoint any more.
-- $1 tenants, $2 jobs, $3 routes, $4 types, $5 statuses, $6 started at, $7 durations in ms, $8 outcomes, $9 status codes,
-- $10 error codes, $11 response excerpts, $12 routes to disable, $13 the configurations with which they were read
WITH attempt AS (
    SELECT *
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::integer[], $8::text[],
        $9::smallint[], $10::text[], $11::text[], $12::uuid[], $13::text[]
    ) AS given (
        tenant_id, job_id, route_id, destination_type, status, started_at, duration_ms, outcome,
        status_code, error_code, response_excerpt, gone_route, gone_config
    )
),
job AS (
    INSERT INTO delivery_jobs AS known (
        tenant_id, job_id, route_id, destination_type, status, attempts, delivered_at
    )
    SELECT
        tenant_id, job_id, route_id, destination_type, status, 1, CASE WHEN status = 'delivered' THEN now() END
    FROM attempt
    ON CONFLICT (tenant_id, job_id) DO UPDATE SET
        status = CASE WHEN known.status = 'delivered' THEN known.status ELSE excluded.status END,
        attempts = known.attempts + 1,
        last_attempt_at = excluded.last_attempt_at,
        delivered_at = coalesce(known.delivered_at, excluded.delivered_at)
    RETURNING tenant_id, job_id, attempts
),
disabled AS (
    UPDATE message_routes AS route SET is_enabled = FALSE, updated_at = now()
    FROM attempt
    WHERE route.id = attempt.gone_route
      AND route.tenant_id = attempt.tenant_id
      AND route.destination_config = attempt.gone_config::jsonb
)
INSERT INTO delivery_attempts (
    tenant_id, job_id, attempt, route_id, destination_type, started_at, duration_ms,
    outcome, status_code, error_code, response_excerpt
)
SELECT
    tenant_id, job_id, job.attempts, attempt.route_id, attempt.destination_type, attempt.started_at,
    attempt.duration_ms, attempt.outcome, attempt.status_code, attempt.error_code, attempt.response_excerpt
FROM attempt
JOIN job USING (tenant_id, job_id);

-- name: forget_old
-- Removes jobs that were last tried longer ago than $1, and by cascade their attempts; $2 at a time, so that no
-- statement holds its locks for long.
-- $1 age, $2 how many at most
DELETE FROM delivery_jobs
WHERE (tenant_id, job_id) IN (
    SELECT tenant_id, job_id FROM delivery_jobs WHERE last_attempt_at < now() - $1::interval LIMIT $2
);
