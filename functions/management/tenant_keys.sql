-- name: insert
-- A tenant may have 100 keys that are valid. Of those that ended the newest thousand are kept.
WITH forgotten AS (
    DELETE FROM tenant_keys
    WHERE key_id IN (
        SELECT key_id FROM tenant_keys
        WHERE tenant_id = $1::text AND (revoked_at IS NOT NULL OR expires_at <= now())
        ORDER BY created_at DESC, key_id DESC
        LIMIT 1000 OFFSET 1000
    )
)
INSERT INTO tenant_keys (tenant_id, name, key_sha256, expires_at)
SELECT $1::text, $2::text, $3::bytea, $4::timestamptz
WHERE (
    SELECT count(*) FROM tenant_keys
    WHERE tenant_id = $1::text AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
) < 100
RETURNING key_id, tenant_id, name, created_at, expires_at, revoked_at

-- name: page
SELECT key_id, tenant_id, name, created_at, expires_at, revoked_at
FROM tenant_keys
WHERE tenant_id = $1
  AND ($2::timestamptz IS NULL OR (created_at, key_id) < ($2, $3::uuid))
ORDER BY created_at DESC, key_id DESC
LIMIT $4

-- name: revoke
UPDATE tenant_keys SET revoked_at = coalesce(revoked_at, now())
WHERE tenant_id = $1 AND key_id = $2
RETURNING key_id, tenant_id, name, created_at, expires_at, revoked_at

-- name: tenant_exists
SELECT EXISTS (SELECT FROM tenants WHERE tenant_id = $1)

-- name: owners
-- The tenants of the keys that are valid now, of active tenants. $1 the keys' SHA-256
SELECT encode(key.key_sha256, 'hex') AS digest, key.tenant_id::text AS tenant_id
FROM tenant_keys AS key
JOIN tenants ON tenants.tenant_id = key.tenant_id AND tenants.status = 'ACTIVE'
WHERE key.key_sha256 = ANY ($1::bytea[])
  AND key.revoked_at IS NULL
  AND (key.expires_at IS NULL OR key.expires_at > now())
