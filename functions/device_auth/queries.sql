-- name: find_active_certificate
-- Whether this certificate is one of the device's, active and valid now.
SELECT true
FROM device_certificates
WHERE fingerprint_sha256 = $3 AND tenant_id = $1 AND device_id = $2
  AND status = 'ACTIVE' AND now() >= not_before AND now() < not_after

-- name: find_devices
-- Each of these devices that may connect, with the time when a proof of its identity last ceased to count. When a
-- replaced token ends, that is the time when it was replaced: sessions that it began later have an end of their own.
SELECT d.tenant_id, d.device_id,
       greatest(d.proof_ended_at, CASE WHEN d.previous_token_until <= now() THEN d.token_rotated_at END) AS proof_ended_at
FROM unnest($1::text[], $2::text[]) AS asked (tenant_id, device_id)
JOIN device_registry d ON d.tenant_id = asked.tenant_id AND d.device_id = asked.device_id
JOIN tenants t ON t.tenant_id = d.tenant_id AND t.status = 'ACTIVE'
WHERE d.status = 'ACTIVE'
