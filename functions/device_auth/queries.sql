-- name: find_active_certificate
-- Whether this certificate is one of the device's, active and valid now.
SELECT true
FROM device_certificates
WHERE fingerprint_sha256 = $3 AND tenant_id = $1 AND device_id = $2
  AND status = 'ACTIVE' AND now() >= not_before AND now() < not_after

-- name: find_devices
-- Each of these devices that may connect, with the time when a proof of its identity last ceased to count.
SELECT d.tenant_id, d.device_id, d.proof_ended_at
FROM unnest($1::text[], $2::text[]) AS asked (tenant_id, device_id)
JOIN device_registry d ON d.tenant_id = asked.tenant_id AND d.device_id = asked.device_id
JOIN tenants t ON t.tenant_id = d.tenant_id AND t.status = 'ACTIVE'
WHERE d.status = 'ACTIVE'
