-- name: find
-- Between two notes of a device's activity the newest row of telemetry says when it was seen.
SELECT CASE WHEN known.last_seen_at IS NULL THEN 'never_seen' ELSE known.status END AS status, known.reason,
       known.changed_at AS since, seen_of(registered.tenant_id, registered.device_id, known.last_seen_at) AS last_seen_at,
       (SELECT count(*) FROM device_sessions AS session
        WHERE session.tenant_id = registered.tenant_id AND session.device_id = registered.device_id
          AND session.ended_at IS NULL) AS sessions,
       registered.presence_timeout_s AS timeout_s
FROM device_registry AS registered
LEFT JOIN device_presence AS known USING (tenant_id, device_id)
WHERE tenant_id = $1 AND device_id = $2

-- name: changes
SELECT number, status, reason, at, last_seen_at
FROM device_presence_events
WHERE tenant_id = $1 AND device_id = $2
ORDER BY number DESC

-- name: set_timeout
-- $1 tenant, $2 device, $3 seconds, or NULL
UPDATE device_registry SET presence_timeout_s = $3, updated_at = now()
WHERE tenant_id = $1 AND device_id = $2
RETURNING true

-- name: judge_again
UPDATE device_presence SET check_at = now() WHERE tenant_id = $1 AND device_id = $2
