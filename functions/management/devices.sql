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

-- name: show
SELECT d.tenant_id, d.device_id, d.site_id, d.status, d.metadata::text, d.subscription_id, d.sensor_limit,
       d.previous_token_until, d.created_at, d.updated_at,
       CASE WHEN p.last_seen_at IS NULL THEN 'never_seen' ELSE p.status END AS presence, p.changed_at AS presence_since,
       seen_of(d.tenant_id, d.device_id, p.last_seen_at) AS last_seen_at
FROM device_registry d
LEFT JOIN device_presence p ON p.tenant_id = d.tenant_id AND p.device_id = d.device_id
WHERE d.tenant_id = $1 AND d.device_id = $2

-- name: page
-- The page first, and then what is known of its devices.
WITH page AS (
    SELECT d.*, p.status AS presence_status, p.changed_at AS presence_since, p.last_seen_at AS noted_at
    FROM device_registry d
    LEFT JOIN device_presence p ON p.tenant_id = d.tenant_id AND p.device_id = d.device_id
    WHERE d.tenant_id = $1
      AND ($2::text IS NULL OR d.status = $2)
      AND ($3::text IS NULL OR d.device_id > $3)
      AND CASE $5::text WHEN 'online' THEN p.status = 'online'
                        WHEN 'offline' THEN p.status = 'offline' AND p.last_seen_at IS NOT NULL
                        WHEN 'never_seen' THEN p.last_seen_at IS NULL
                        ELSE TRUE END
    ORDER BY d.device_id
    LIMIT $4
)
SELECT tenant_id, device_id, site_id, status, metadata::text, subscription_id, sensor_limit,
       previous_token_until, created_at, updated_at,
       CASE WHEN noted_at IS NULL THEN 'never_seen' ELSE presence_status END AS presence, presence_since,
       seen_of(tenant_id, device_id, noted_at) AS last_seen_at
FROM page
ORDER BY device_id

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
