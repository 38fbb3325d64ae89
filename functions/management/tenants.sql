-- name: insert
INSERT INTO tenants (tenant_id, name, metadata)
VALUES ($1, $2, $3::text::jsonb)
ON CONFLICT DO NOTHING
RETURNING tenant_id, name, status, metadata::text, created_at, updated_at

-- name: find
SELECT tenant_id, name, status, metadata::text, created_at, updated_at
FROM tenants
WHERE tenant_id = $1

-- name: page
SELECT tenant_id, name, status, metadata::text, created_at, updated_at
FROM tenants
WHERE $1::text IS NULL OR tenant_id > $1
ORDER BY tenant_id
LIMIT $2

-- name: update
UPDATE tenants
SET status = coalesce($2, status),
    name = coalesce($3, name),
    metadata = coalesce($4::text::jsonb, metadata),
    updated_at = now()
WHERE tenant_id = $1
RETURNING tenant_id, name, status, metadata::text, created_at, updated_at
