-- name: floor
SELECT rows_from FROM telemetry_floors WHERE tenant_id = $1

-- name: missing_days
SELECT day FROM unnest($1::date[]) AS day
WHERE to_regclass('telemetry_' || to_char(day, 'YYYYMMDD')) IS NULL
ORDER BY day DESC

-- name: limit_lock_wait
-- Every later statement on the table waits behind one that waits for its lock.
SET LOCAL lock_timeout = '2s'

-- name: ensure_day
SELECT ensure_telemetry_day($1)
