-- name: active_certificates
-- The numbers, from 1, of the claims whose certificate is the device's, active and valid now.
SELECT claim.number
FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS claim (tenant_id, device_id, fingerprint, number)
JOIN device_certificates c ON c.tenant_id = claim.tenant_id AND c.device_id = claim.device_id
    AND c.fingerprint_sha256 = claim.fingerprint
WHERE c.status = 'ACTIVE' AND now() >= c.not_before AND now() < c.not_after
