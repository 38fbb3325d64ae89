-- name: find_devices
-- Each device with its tenant and the subscription that counts for it: its own, or else the tenant's best
-- MAIN one.
SELECT d.tenant_id::text, d.device_id::text, d.site_id, d.status, d.provision_token_hash, d.sensor_limit,
       t.status AS tenant_status, s.status AS subscription_status, s.expires_at,
       ARRAY(SELECT sensor FROM device_sensors k
             WHERE k.tenant_id = d.tenant_id AND k.device_id = d.device_id) AS sensors,
       ARRAY(SELECT not_before FROM device_certificates c
             WHERE c.tenant_id = d.tenant_id AND c.device_id = d.device_id AND c.status = 'ACTIVE'
             ORDER BY certificate_id) AS not_before,
       ARRAY(SELECT not_after FROM device_certificates c
             WHERE c.tenant_id = d.tenant_id AND c.device_id = d.device_id AND c.status = 'ACTIVE'
             ORDER BY certificate_id) AS not_after
FROM unnest($1::text[], $2::text[]) AS wanted (tenant_id, device_id)
JOIN device_registry d ON d.tenant_id = wanted.tenant_id AND d.device_id = wanted.device_id
JOIN tenants t ON t.tenant_id = d.tenant_id
LEFT JOIN LATERAL (
    SELECT status, expires_at FROM subscriptions
    WHERE tenant_id = d.tenant_id
      AND CASE WHEN d.subscription_id IS NULL THEN type = 'MAIN'
               ELSE subscription_id = d.subscription_id END
    ORDER BY status IN ('ACTIVE', 'TRIAL', 'GRACE') DESC, coalesce(expires_at, 'infinity') DESC
    LIMIT 1
) s ON TRUE

-- name: find_routes
SELECT id::text, tenant_id::text, topic_filter, destination_type, payload_filter
FROM message_routes
WHERE tenant_id = ANY ($1::text[]) AND is_enabled
ORDER BY id
