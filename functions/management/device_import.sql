-- name: existing
-- $1 tenant, $2 devices
SELECT device_id::text, site_id, metadata::text, subscription_id, sensor_limit, provision_token_hash
FROM device_registry
WHERE tenant_id = $1 AND device_id = ANY ($2::text[])

-- name: subscriptions
-- $1 tenant, $2 subscriptions
SELECT subscription_id FROM subscriptions WHERE tenant_id = $1 AND subscription_id = ANY ($2::uuid[])

-- name: insert
-- $1 tenant, $2 devices, $3 sites, $4 SHA-256 of tokens, $5 metadata, $6 subscriptions, $7 sensor limits
INSERT INTO device_registry
    (tenant_id, device_id, site_id, provision_token_hash, metadata, subscription_id, sensor_limit)
SELECT $1, device_id, site_id, token_hash, metadata::jsonb, subscription_id, sensor_limit
FROM unnest($2::text[], $3::text[], $4::bytea[], $5::text[], $6::uuid[], $7::integer[])
    AS device (device_id, site_id, token_hash, metadata, subscription_id, sensor_limit)
ORDER BY device_id
