-- Health of endpoints. An endpoint is a tenant and a digest; see `EndpointKey`.

-- name: record_health
-- Counts the attempts of a batch for their endpoints. A success clears what was counted before it; $4 are the failures
-- after the last success.
-- $1 tenants, $2 endpoints, $3 whether one attempt succeeded, $4 failures, $5 last error codes, $6 last status codes
WITH seen AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::boolean[], $4::bigint[], $5::text[], $6::smallint[])
        AS given (tenant_id, endpoint, has_success, failures, error_code, status_code)
    ORDER BY tenant_id, endpoint
),
health AS (
    INSERT INTO endpoint_health AS known (
        tenant_id, endpoint, failing_since, failures, last_failure_at, last_success_at, last_error_code, last_status_code
    )
    SELECT
        tenant_id, endpoint, CASE WHEN failures > 0 THEN now() END, failures, CASE WHEN failures > 0 THEN now() END,
        CASE WHEN has_success THEN now() END, error_code, status_code
    FROM seen
    ON CONFLICT (tenant_id, endpoint) DO UPDATE SET
        failing_since = CASE
            WHEN excluded.last_success_at IS NULL THEN coalesce(known.failing_since, excluded.failing_since)
            ELSE excluded.failing_since
        END,
        failures = excluded.failures + CASE WHEN excluded.last_success_at IS NULL THEN known.failures ELSE 0 END,
        last_failure_at = coalesce(excluded.last_failure_at, known.last_failure_at),
        last_success_at = coalesce(excluded.last_success_at, known.last_success_at),
        last_error_code = coalesce(excluded.last_error_code, known.last_error_code),
        last_status_code = coalesce(excluded.last_status_code, known.last_status_code),
        clock_started_at = CASE WHEN excluded.last_success_at IS NULL THEN known.clock_started_at END
)
INSERT INTO endpoint_failures AS known (tenant_id, endpoint, hour, failures, first_at, last_at)
SELECT tenant_id, endpoint, date_trunc('hour', now(), 'UTC'), failures, now(), now()
FROM seen
WHERE failures > 0
ON CONFLICT (tenant_id, endpoint, hour) DO UPDATE SET
    failures = known.failures + excluded.failures,
    last_at = greatest(known.last_at, excluded.last_at);

-- name: watched
-- Endpoints about which something may have to be decided, with their failures by hour where the clock does not run:
-- those that have failed for $3, those of which the tenant was told, and those that were disabled.
-- $1, $2 the tenant and endpoint after which to begin, $3 the least time of failing, $4 how many at most
SELECT
    health.tenant_id, health.endpoint, failing_since, last_failure_at, last_success_at, clock_started_at, told_percent,
    disabled_at, health.failures, last_error_code, last_status_code,
    ARRAY(
        SELECT json_build_array(hour.failures, hour.first_at, hour.last_at)::text
        FROM endpoint_failures AS hour
        WHERE hour.tenant_id = health.tenant_id AND hour.endpoint = health.endpoint
          AND health.clock_started_at IS NULL AND health.failing_since IS NOT NULL
        ORDER BY hour.hour
    ) AS hours
FROM endpoint_health AS health
WHERE (health.tenant_id, health.endpoint) > ($1, $2)
  AND (failing_since IS NOT NULL OR told_percent > 0 OR disabled_at IS NOT NULL)
  AND (failing_since < now() - $3::interval OR told_percent > 0 OR disabled_at IS NOT NULL)
ORDER BY health.tenant_id, health.endpoint
LIMIT $4;

-- name: settle
-- Stores a verdict, unless an attempt has changed the endpoint's health since it was read: the next judgement sees that.
-- $1 tenant, $2 endpoint, $3 failing since, $4 clock and $5 told percent as they were read, $6 the clock and $7 the told
-- percent from now on, $8 whether the endpoint is disabled: NULL for as it is
UPDATE endpoint_health
SET clock_started_at = $6, told_percent = $7,
    disabled_at = CASE WHEN $8::boolean IS NULL THEN disabled_at WHEN $8 THEN now() END
WHERE tenant_id = $1 AND endpoint = $2
  AND failing_since IS NOT DISTINCT FROM $3
  AND clock_started_at IS NOT DISTINCT FROM $4
  AND told_percent = $5
RETURNING endpoint;

-- name: routes_of_endpoint
-- The endpoint's routes, locked.
-- $1 tenant, $2 endpoint
SELECT id::text AS route_id, name, split_part(topic_filter, '/', 3) = 'notices' AS is_of_notices
FROM message_routes
WHERE tenant_id = $1 AND endpoint = $2
ORDER BY id
LIMIT 20
FOR UPDATE;

-- name: disable_routes
-- $1 tenant, $2 endpoint, $3 reason
UPDATE message_routes
SET is_enabled = FALSE, disabled_at = now(), disabled_reason = $3, updated_at = now()
WHERE tenant_id = $1 AND endpoint = $2 AND is_enabled;

-- name: enable_routes
-- Enables the routes that were disabled for their endpoint's failures, and has what failed since then sent again: not what
-- is older than the route, nor than the log of deliveries, which is kept for 30 days and says what has been delivered.
-- $1 tenant, $2 endpoint, $3 since when, $4 rate of the replays; 0 for no replay
WITH enabled AS (
    UPDATE message_routes SET is_enabled = TRUE, updated_at = now()
    WHERE tenant_id = $1 AND endpoint = $2 AND NOT is_enabled AND disabled_reason = 'ENDPOINT_FAILING'
    RETURNING tenant_id, id, created_at
)
INSERT INTO delivery_replays (tenant_id, replay_id, route_id, kind, since, rate_per_s, phase)
SELECT tenant_id, gen_random_uuid(), id, 'recover', greatest($3, created_at, now() - interval '28 days'), $4, 'failed'
FROM enabled
WHERE $4::integer > 0;

-- name: forget_endpoint
-- Forgets an endpoint that no route leads to.
-- $1 tenant, $2 endpoint
DELETE FROM endpoint_health
WHERE tenant_id = $1 AND endpoint = $2
  AND NOT EXISTS (SELECT FROM message_routes WHERE tenant_id = $1 AND endpoint = $2);

-- name: forget_old_failures
DELETE FROM endpoint_failures WHERE hour < now() - interval '2 days';

-- name: due_probes
-- A route of each endpoint that is to be probed: disabled for its failures, and not probed for $1.
-- $1 time between two probes, $2 how many at most
SELECT health.tenant_id, health.endpoint, route.route_id, route.destination_type
FROM endpoint_health AS health
CROSS JOIN LATERAL (
    SELECT id::text AS route_id, destination_type
    FROM message_routes
    WHERE tenant_id = health.tenant_id AND endpoint = health.endpoint
      AND NOT is_enabled AND disabled_reason = 'ENDPOINT_FAILING'
    ORDER BY created_at
    LIMIT 1
) AS route
WHERE disabled_at IS NOT NULL AND greatest(disabled_at, probed_at) < now() - $1::interval
ORDER BY greatest(disabled_at, probed_at)
LIMIT $2;

-- name: mark_probed
-- $1 tenants, $2 endpoints
UPDATE endpoint_health AS health SET probed_at = now()
FROM unnest($1::text[], $2::text[]) AS probed (tenant_id, endpoint)
WHERE health.tenant_id = probed.tenant_id AND health.endpoint = probed.endpoint;
