-- name: find_devices
-- Each device with its tenant and the subscriptions that may count for it: its own, or else the tenant's that
-- are no ADDON. Which of them counts depends on the time of the message.
SELECT d.tenant_id::text, d.device_id::text, d.site_id, d.status, d.provision_token_hash, d.sensor_limit,
       d.previous_token_hash, d.previous_token_until,
       coalesce(d.presence_timeout_s, (SELECT timeout_s FROM presence_watch)) AS presence_timeout_s,
       t.status AS tenant_status,
       ARRAY(SELECT sensor FROM device_sensors k
             WHERE k.tenant_id = d.tenant_id AND k.device_id = d.device_id) AS sensors,
       ARRAY(SELECT not_before FROM device_certificates c
             WHERE c.tenant_id = d.tenant_id AND c.device_id = d.device_id AND c.status = 'ACTIVE'
             ORDER BY certificate_id) AS not_before,
       ARRAY(SELECT not_after FROM device_certificates c
             WHERE c.tenant_id = d.tenant_id AND c.device_id = d.device_id AND c.status = 'ACTIVE'
             ORDER BY certificate_id) AS not_after,
       s.statuses, s.starts_at, s.expires_at
FROM unnest($1::text[], $2::text[]) AS wanted (tenant_id, device_id)
JOIN device_registry d ON d.tenant_id = wanted.tenant_id AND d.device_id = wanted.device_id
JOIN tenants t ON t.tenant_id = d.tenant_id
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(status), '{}') AS statuses, array_agg(starts_at) AS starts_at,
           array_agg(expires_at) AS expires_at
    FROM (
        SELECT status, starts_at, expires_at FROM subscriptions
        WHERE tenant_id = d.tenant_id
          AND CASE WHEN d.subscription_id IS NULL THEN type <> 'ADDON'
                   ELSE subscription_id = d.subscription_id END
        ORDER BY status IN ('ACTIVE', 'TRIAL', 'GRACE') DESC, coalesce(expires_at, 'infinity') DESC
        LIMIT 50
    ) counting
) s

-- name: find_routes
SELECT id::text, tenant_id::text, topic_filter, destination_type, payload_filter, order_by
FROM message_routes
WHERE tenant_id = ANY ($1::text[]) AND is_enabled
ORDER BY id
