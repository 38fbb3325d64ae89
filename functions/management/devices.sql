-- name: lock_tenant
-- Serializes registrations of one tenant, so that two of them cannot both use the last free device.
SELECT status FROM tenants WHERE tenant_id = $1 FOR NO KEY UPDATE

-- name: room
-- NULL when the tenant has no such subscription: no limit applies, but ingest refuses the device's messages.
-- Subscriptions that are not in force count only when none is.
SELECT coalesce(
    max(s.device_limit) FILTER (
        WHERE s.status IN ('ACTIVE', 'TRIAL', 'GRACE') AND s.starts_at <= now()
          AND (s.expires_at IS NULL OR s.expires_at > now())
    ),
    max(s.device_limit)
) - coalesce((
    SELECT active FROM device_counts WHERE tenant_id = $1 AND subscription_id IS NOT DISTINCT FROM $2::uuid
), 0)
FROM subscriptions s
WHERE s.tenant_id = $1 AND CASE WHEN $2 IS NULL THEN s.type <> 'ADDON' ELSE s.subscription_id = $2 END

-- name: insert
INSERT INTO device_registry
    (tenant_id, device_id, site_id, provision_token_hash, metadata, subscription_id, sensor_limit)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7)
RETURNING tenant_id, device_id, site_id, status, metadata::text, subscription_id, sensor_limit,
          previous_token_until, created_at, updated_at, provision_token_hash

-- name: find
SELECT tenant_id, device_id, site_id, status, metadata::text, subscription_id, sensor_limit,
       previous_token_until, created_at, updated_at, provision_token_hash
FROM device_registry
WHERE tenant_id = $1 AND device_id = $2

-- name: page
SELECT tenant_id, device_id, site_id, status, metadata::text, subscription_id, sensor_limit,
       previous_token_until, created_at, updated_at, provision_token_hash
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
          previous_token_until, created_at, updated_at, provision_token_hash

-- name: set_token
-- $3 SHA-256 of the new token, $4 how long the present one counts
UPDATE device_registry
SET provision_token_hash = $3, updated_at = now(),
    previous_token_hash = CASE WHEN $4::interval > '0' THEN provision_token_hash END,
    previous_token_until = CASE WHEN $4::interval > '0' AND provision_token_hash IS NOT NULL THEN now() + $4::interval END
WHERE tenant_id = $1 AND device_id = $2
RETURNING tenant_id, device_id, site_id, status, metadata::text, subscription_id, sensor_limit,
          previous_token_until, created_at, updated_at, provision_token_hash

-- name: delete_commands
-- A device may have many commands, with many answers. Returns how many were deleted.
WITH gone AS (
    DELETE FROM device_commands WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM device_commands WHERE tenant_id = $1 AND device_id = $2 LIMIT $3))
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: delete
DELETE FROM device_registry WHERE tenant_id = $1 AND device_id = $2
