-- name: tenants
-- Tenants whose telemetry ends at some age, and the midnights (UTC) from which it is kept.
-- $1 the days that the installation keeps rows; 0 for all
SELECT tenant_id::text, rows_from, rollups_from
FROM (
    SELECT tenant_id, date_bin('24 hours', now(), '2000-01-01 00:00Z') AS today,
           least(telemetry_days, nullif($1::integer, 0)) AS days, rollup_days
    FROM tenants
) AS tenant
CROSS JOIN LATERAL (
    SELECT today - days * interval '24 hours' AS rows_from, today - rollup_days * interval '24 hours' AS rollups_from
) AS kept
WHERE rows_from IS NOT NULL OR rollups_from IS NOT NULL
-- A tenant with more than one run can remove is not always the first.
ORDER BY random()

-- name: raise_floor
-- Rows go when they are rolled up. False: some are not yet.
-- $1 tenant, $2 the midnight
WITH raised AS (
    INSERT INTO telemetry_floors AS floor (tenant_id, rows_from)
    SELECT $1::text, $2::timestamptz
    WHERE EXISTS (SELECT FROM tenants WHERE tenant_id = $1::text)
      AND NOT EXISTS (SELECT FROM rollup_marks
                      WHERE tenant_id = $1::text AND level <> 'day' AND from_at < $2
                        AND from_at >= coalesce((SELECT rows_from FROM telemetry_floors WHERE tenant_id = $1::text), '-infinity'))
    ON CONFLICT (tenant_id) DO UPDATE SET rows_from = excluded.rows_from
    WHERE floor.rows_from < excluded.rows_from
    RETURNING 1
)
SELECT EXISTS (SELECT FROM raised)
    OR EXISTS (SELECT FROM telemetry_floors WHERE tenant_id = $1::text AND rows_from >= $2)
    OR NOT EXISTS (SELECT FROM tenants WHERE tenant_id = $1::text)

-- name: floor
SELECT rows_from, removed_before FROM telemetry_floors WHERE tenant_id = $1

-- name: remove_rows
-- $1 tenant, $2 since, $3 before, $4 how many
SELECT remove_old_telemetry($1, $2, $3, $4)

-- name: remove_minutes
-- $1 tenant, $2 before which midnight, $3 how many
DELETE FROM telemetry_minutes WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM telemetry_minutes
    WHERE tenant_id = $1 AND date_bin('24 hours', bucket, '2000-01-01 00:00Z') < $2 LIMIT $3))

-- name: remove_hours
DELETE FROM telemetry_hours WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM telemetry_hours
    WHERE tenant_id = $1 AND date_bin('24 hours', bucket, '2000-01-01 00:00Z') < $2 LIMIT $3))

-- name: remove_days
DELETE FROM telemetry_days WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM telemetry_days
    WHERE tenant_id = $1 AND date_bin('24 hours', bucket, '2000-01-01 00:00Z') < $2 LIMIT $3))

-- name: note_removed
-- $1 tenant, $2 the midnight before which all is removed
UPDATE telemetry_floors SET removed_before = $2
WHERE tenant_id = $1 AND removed_before IS DISTINCT FROM $2
