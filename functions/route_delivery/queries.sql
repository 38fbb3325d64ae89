-- Delivery jobs and their attempts; the management API writes the routes.

-- name: find_routes
-- The routes of several jobs, and what is known of each job. Has no row for a job whose tenant has no such route.
-- `number` is the job's place in the arrays, from 1.
-- $1 tenants, $2 routes, $3 jobs
SELECT
    wanted.number,
    route.destination_type,
    route.destination_config::text AS destination_config,
    route.destination_secrets,
    route.is_enabled,
    route.paused_at IS NOT NULL AS is_paused,
    route.disabled_reason,
    route.endpoint,
    job.status AS job_status,
    job.replay_id::text AS replay_id,
    route.delivery_options::text AS delivery_options,
    job.only_copy,
    CASE WHEN job.attempts = 0 THEN job.refusal END AS refusal
FROM unnest($1::text[], $2::uuid[], $3::text[]) WITH ORDINALITY AS wanted (tenant_id, route_id, job_id, number)
JOIN message_routes AS route ON route.id = wanted.route_id AND route.tenant_id = wanted.tenant_id
LEFT JOIN LATERAL (
    -- The limit keeps this a look-up by the key for each job. As a join it was planned while the table was empty, as a
    -- scan of all of it, and so for minutes after the start of a new installation.
    SELECT * FROM delivery_jobs AS known
    WHERE known.tenant_id = wanted.tenant_id AND known.job_id = wanted.job_id
    LIMIT 1
) AS job ON TRUE;

-- name: claim_job
-- Makes a stored message the only copy of a job that has not been tried since it was made or sent.
-- $1 tenant, $2 job, $3 the message
UPDATE delivery_jobs SET only_copy = $3
WHERE tenant_id = $1 AND job_id = $2 AND status = 'waiting' AND only_copy IS NULL
RETURNING TRUE;

-- name: find_route_type
-- The type of a tenant's route, and its order.
-- $1 tenant, $2 route
SELECT destination_type, order_by FROM message_routes WHERE tenant_id = $1 AND id = $2;

-- name: record_attempts
-- Logs and numbers one attempt of each of several jobs, and updates the jobs' states. A delivered job stays delivered,
-- even if a concurrent attempt failed. A job that is not delivered keeps its content, so that it can be sent again.
-- $1 tenants, $2 jobs, $3 routes, $4 types, $5 statuses, $6 started at, $7 durations in ms, $8 outcomes, $9 status codes,
-- $10 error codes, $11 response excerpts, $12 contents of the jobs that are not delivered
WITH attempt AS (
    SELECT *
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::integer[], $8::text[],
        $9::smallint[], $10::text[], $11::text[], $12::bytea[]
    ) AS given (
        tenant_id, job_id, route_id, destination_type, status, started_at, duration_ms, outcome,
        status_code, error_code, response_excerpt, content
    )
),
job AS (
    INSERT INTO delivery_jobs AS known (
        tenant_id, job_id, route_id, destination_type, status, attempts, delivered_at, content, size_bytes
    )
    SELECT
        tenant_id, job_id, route_id, destination_type, status, 1, CASE WHEN status = 'delivered' THEN now() END,
        content,
        -- and its letter's headers: `REFUSED_LETTER_BYTES`
        coalesce(octet_length(content) + CASE status WHEN 'refused' THEN 1000 ELSE 0 END, 0)
    FROM attempt
    ON CONFLICT (tenant_id, job_id) DO UPDATE SET
        status = CASE WHEN known.status = 'delivered' THEN known.status ELSE excluded.status END,
        attempts = known.attempts + 1,
        last_attempt_at = excluded.last_attempt_at,
        delivered_at = coalesce(known.delivered_at, excluded.delivered_at),
        content = CASE WHEN 'delivered' NOT IN (known.status, excluded.status) THEN excluded.content END,
        size_bytes = CASE WHEN excluded.status IN ('refused', 'dead') THEN excluded.size_bytes ELSE known.size_bytes END
    RETURNING tenant_id, job_id, attempts
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

-- name: hold_jobs
-- Keeps jobs until their route takes jobs again; `release_held` sends a copy of its own then.
-- $1 tenants, $2 jobs, $3 routes, $4 types, $5 contents
INSERT INTO delivery_jobs AS known (
    tenant_id, job_id, route_id, destination_type, status, attempts, content, size_bytes
)
SELECT tenant_id, job_id, route_id, destination_type, 'held', 0, content, octet_length(content)
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[])
    AS given (tenant_id, job_id, route_id, destination_type, content)
ON CONFLICT (tenant_id, job_id) DO UPDATE SET
    status = 'held', last_attempt_at = now(), content = excluded.content, replay_id = NULL
WHERE known.status <> 'delivered';

-- name: link_endpoints
-- Says to which endpoint routes lead, unless their configuration has changed since it was read.
-- $1 tenants, $2 routes, $3 endpoints, $4 configurations, $5 their encrypted secrets
UPDATE message_routes AS route SET endpoint = given.endpoint
FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::bytea[])
    AS given (tenant_id, route_id, endpoint, config, secrets)
WHERE route.id = given.route_id
  AND route.tenant_id = given.tenant_id
  AND route.destination_config = given.config::jsonb
  AND route.destination_secrets IS NOT DISTINCT FROM given.secrets
  AND route.endpoint IS DISTINCT FROM given.endpoint;

-- name: disable_gone
-- Disables a route whose endpoint wants no more deliveries, and the tenant's other routes to it, and tells the tenant. A
-- route whose configuration has changed since it was read stays enabled: the endpoint that is gone is not its endpoint
-- any more.
-- $1 tenant, $2 route, $3 the configuration with which it was read, $4 endpoint, $5 error code, $6 status code,
-- $7 the encrypted secrets with which it was read
WITH asked AS (
    SELECT id
    FROM message_routes
    WHERE tenant_id = $1 AND id = $2 AND is_enabled
      AND destination_config = $3::text::jsonb AND destination_secrets IS NOT DISTINCT FROM $7::bytea
),
disabled AS (
    UPDATE message_routes AS route
    SET is_enabled = FALSE, disabled_at = now(), disabled_reason = 'ENDPOINT_GONE', updated_at = now()
    FROM asked
    WHERE route.tenant_id = $1 AND (route.id = asked.id OR route.endpoint = $4) AND route.is_enabled
    RETURNING route.id, route.name, split_part(route.topic_filter, '/', 3) = 'notices' AS is_of_notices
)
INSERT INTO notices (tenant_id, kind, dedupe_key, data, is_routed)
SELECT
    $1, 'endpoint_disabled', $4::text || '/gone/' || now(),
    jsonb_build_object(
        'endpoint', $4::text, 'reason', 'ENDPOINT_GONE', 'last_error_code', $5::text, 'last_status_code', $6::smallint,
        'routes', jsonb_agg(jsonb_build_object('route_id', id, 'name', name) ORDER BY name)
    ),
    NOT bool_and(is_of_notices)
FROM disabled
HAVING count(*) > 0;

-- name: forget_old
-- Removes jobs that were last tried longer ago than $1, and by cascade their attempts; $2 at a time, so that no
-- statement holds its locks for long.
-- $1 age, $2 how many at most
DELETE FROM delivery_jobs
WHERE (tenant_id, job_id) IN (
    SELECT tenant_id, job_id FROM delivery_jobs
    -- What has not ended keeps its content here.
    WHERE last_attempt_at < now() - $1::interval AND status IN ('delivered', 'refused', 'dead')
    LIMIT $2
);

-- name: forget_replays
-- $1 age
DELETE FROM delivery_replays WHERE finished_at < now() - $1::interval;

-- name: forget_endpoints
-- Endpoints to which no route leads any more.
DELETE FROM endpoint_health AS health
WHERE greatest(last_success_at, last_failure_at) < now() - interval '2 days'
  AND NOT EXISTS (
      SELECT FROM message_routes AS route
      WHERE route.tenant_id = health.tenant_id AND route.endpoint = health.endpoint
  );
