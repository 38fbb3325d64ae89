-- name: insert
-- $1 tenant, $2 kind, $3 regions, $4 zone, $5 starts, $6 ends, $7 days, $8 whether high priority passes
INSERT INTO quiet_hours (tenant_id, kind, regions, time_zone, starts, ends, days, high_passes)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING *

-- name: page
-- $1 tenant or NULL, $2 and $3 time and id of the last one before, or NULL, $4 how many
SELECT * FROM quiet_hours
WHERE ($1::text IS NULL OR tenant_id = $1)
  AND ($2::timestamptz IS NULL OR (created_at, quiet_hours_id) > ($2, $3::uuid))
ORDER BY created_at, quiet_hours_id
LIMIT $4

-- name: update
-- $1 id, then as in insert from the regions on; NULL leaves a value as it is
UPDATE quiet_hours SET
    regions = coalesce($2, regions),
    time_zone = coalesce($3, time_zone),
    starts = coalesce($4, starts),
    ends = coalesce($5, ends),
    days = coalesce($6, days),
    high_passes = coalesce($7, high_passes),
    updated_at = now()
WHERE quiet_hours_id = $1
RETURNING *

-- name: delete
DELETE FROM quiet_hours WHERE quiet_hours_id = $1 RETURNING *

-- name: set_rate
-- Also starts the bucket anew, so that turns which an older rate gave hold up nobody longer than they must.
-- $1 tenant, $2 kind, $3 per second, $4 burst
WITH emptied AS (DELETE FROM message_buckets WHERE tenant_id = $1 AND kind = $2)
INSERT INTO message_rates (tenant_id, kind, per_s, burst) VALUES ($1, $2, $3, $4)
ON CONFLICT (tenant_id, kind) DO UPDATE SET per_s = excluded.per_s, burst = excluded.burst, updated_at = now()
RETURNING *

-- name: rates
SELECT * FROM message_rates WHERE tenant_id = $1 ORDER BY kind

-- name: delete_rate
WITH emptied AS (DELETE FROM message_buckets WHERE tenant_id = $1 AND kind = $2)
DELETE FROM message_rates WHERE tenant_id = $1 AND kind = $2 RETURNING *
