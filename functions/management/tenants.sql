-- name: insert
INSERT INTO tenants (tenant_id, name, metadata, telemetry_days, rollup_days)
VALUES ($1, $2, $3::text::jsonb, $4, $5)
ON CONFLICT DO NOTHING
RETURNING tenant_id, name, status, metadata::text, telemetry_days, rollup_days, created_at, updated_at

-- name: find
SELECT tenant_id, name, status, metadata::text, telemetry_days, rollup_days, created_at,
       updated_at
FROM tenants
WHERE tenant_id = $1

-- name: page
SELECT tenant_id, name, status, metadata::text, telemetry_days, rollup_days, created_at,
       updated_at
FROM tenants
WHERE $1::text IS NULL OR tenant_id > $1
ORDER BY tenant_id
LIMIT $2

-- name: update
UPDATE tenants
SET status = coalesce($2, status),
    name = coalesce($3, name),
    metadata = coalesce($4::text::jsonb, metadata),
    -- NULL is a value here, so a flag says whether it is given.
    telemetry_days = CASE WHEN $5 THEN $6 ELSE telemetry_days END,
    rollup_days = CASE WHEN $7 THEN $8 ELSE rollup_days END,
    updated_at = now()
WHERE tenant_id = $1
RETURNING tenant_id, name, status, metadata::text, telemetry_days, rollup_days, created_at, updated_at
