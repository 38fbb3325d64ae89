-- name: lock_tenant
-- Serializes registrations of one tenant, so that two of them cannot both use the last free device.
SELECT TRUE FROM tenants WHERE tenant_id = $1 FOR NO KEY UPDATE

-- name: has_room
-- NULL when the tenant has no such subscription: no limit applies, but ingest refuses the device's messages.
-- Subscriptions that are not in force count only when none is.
SELECT coalesce(
    max(s.device_limit) FILTER (
        WHERE s.status IN ('ACTIVE', 'TRIAL', 'GRACE') AND s.starts_at <= now()
          AND (s.expires_at IS NULL OR s.expires_at > now())
    ),
    max(s.device_limit)
) > (
    SELECT count(*) FROM device_registry d
    WHERE d.tenant_id = $1 AND d.status = 'ACTIVE'
      AND d.subscription_id IS NOT DISTINCT FROM $2::uuid
)
FROM subscriptions s
WHERE s.tenant_id = $1 AND CASE WHEN $2 IS NULL THEN s.type = 'MAIN' ELSE s.subscription_id = $2 END

-- name: insert
INSERT INTO device_registry
    (tenant_id, device_id, site_id, provision_token_hash, metadata, subscription_id, sensor_limit)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7)
RETURNING tenant_id, device_id, site_id, status, metadata::text, subscription_id, sensor_limit,
          created_at, updated_at, provision_token_hash

-- name: find
SELECT tenant_id, device_id, site_id, status, metadata::text, subscription_id, sensor_limit,
       created_at, updated_at, provision_token_hash
FROM device_registry
WHERE tenant_id = $1 AND device_id = $2

-- name: page
SELECT tenant_id, device_id, site_id, status, metadata::text, subscription_id, sensor_limit,
       created_at, updated_at, provision_token_hash
FROM device_registry
WHERE tenant_id = $1
  AND ($2::text IS NULL OR status = $2)
  AND ($3::text IS NULL OR device_id > $3)
ORDER BY device_id
LIMIT $4

-- name: set_status
UPDATE device_registry
SET status = $3, updated_at = now()
WHERE tenant_id = $1 AND device_id = $2
RETURNING tenant_id, device_id, site_id, status, metadata::text, subscription_id, sensor_limit,
          created_at, updated_at, provision_token_hash

-- name: set_token
UPDATE device_registry
SET provision_token_hash = $3, updated_at = now()
WHERE tenant_id = $1 AND device_id = $2
RETURNING tenant_id, device_id, site_id, status, metadata::text, subscription_id, sensor_limit,
          created_at, updated_at, provision_token_hash
