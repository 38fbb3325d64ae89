-- name: latest
SELECT time, site_id, msg_type, seq, metrics::text
FROM telemetry
WHERE tenant_id = $1 AND device_id = $2
ORDER BY time DESC, seq DESC
LIMIT 1

-- name: range
SELECT time, site_id, msg_type, seq, metrics::text
FROM telemetry
WHERE tenant_id = $1 AND device_id = $2
  AND time >= $3 AND time < $4
  AND ($5::timestamptz IS NULL OR (time, seq) > ($5, $6::bigint))
ORDER BY time, seq
LIMIT $7

-- name: is_registered
SELECT EXISTS (SELECT FROM device_registry WHERE tenant_id = $1 AND device_id = $2)
