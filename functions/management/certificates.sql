-- name: insert
INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, not_before, not_after)
VALUES ($1, $2, $3, $4, $5)
RETURNING certificate_id, tenant_id, device_id, fingerprint_sha256, status, not_before, not_after, created_at

-- name: list
-- The newest 500: a device has few certificates, so the list has no pages.
SELECT certificate_id, tenant_id, device_id, fingerprint_sha256, status, not_before, not_after, created_at
FROM device_certificates
WHERE tenant_id = $1 AND device_id = $2
ORDER BY created_at DESC, certificate_id
LIMIT 500

-- name: revoke
UPDATE device_certificates
SET status = 'REVOKED'
WHERE tenant_id = $1 AND device_id = $2 AND certificate_id = $3
RETURNING certificate_id, tenant_id, device_id, fingerprint_sha256, status, not_before, not_after, created_at
