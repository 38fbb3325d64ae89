-- name: forget
-- Codes that ended a month ago, and of those that ended or are used up the oldest ones beyond $2. $1 tenant
WITH over AS (
    SELECT claim_code_id FROM claim_codes
    WHERE tenant_id = $1 AND (revoked_at IS NOT NULL OR expires_at <= now() OR claims >= max_claims)
    ORDER BY created_at DESC, claim_code_id DESC
    LIMIT 1000 OFFSET $2
)
DELETE FROM claim_codes
WHERE tenant_id = $1
  AND (least(expires_at, revoked_at) < now() - interval '30 days' OR claim_code_id IN (SELECT claim_code_id FROM over))

-- name: is_full
-- Whether the tenant has $2 codes that can be used.
SELECT count(*) >= $2 FROM claim_codes
WHERE tenant_id = $1 AND revoked_at IS NULL AND expires_at > now() AND claims < max_claims

-- name: insert
INSERT INTO claim_codes
    (tenant_id, code_sha256, name, device_id, site_id, subscription_id, sensor_limit, metadata, max_claims, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9, coalesce($10, now() + interval '7 days'))
RETURNING claim_code_id, tenant_id, name, device_id, site_id, subscription_id, sensor_limit, metadata::text, max_claims,
          claims, created_at, expires_at, revoked_at

-- name: page
SELECT claim_code_id, tenant_id, name, device_id, site_id, subscription_id, sensor_limit, metadata::text, max_claims,
       claims, created_at, expires_at, revoked_at
FROM claim_codes
WHERE tenant_id = $1
  AND ($2::timestamptz IS NULL OR (created_at, claim_code_id) < ($2, $3::uuid))
ORDER BY created_at DESC, claim_code_id DESC
LIMIT $4

-- name: revoke
UPDATE claim_codes SET revoked_at = coalesce(revoked_at, now())
WHERE tenant_id = $1 AND claim_code_id = $2
RETURNING claim_code_id, tenant_id, name, device_id, site_id, subscription_id, sensor_limit, metadata::text, max_claims,
          claims, created_at, expires_at, revoked_at

-- name: find_tenant
-- $1 SHA-256 of the code
SELECT c.tenant_id, t.status FROM claim_codes c JOIN tenants t USING (tenant_id) WHERE c.code_sha256 = $1

-- name: find
-- $1 SHA-256 of the code
SELECT claim_code_id, tenant_id, device_id, site_id, subscription_id, sensor_limit, metadata::text,
       revoked_at IS NOT NULL OR expires_at <= now() AS is_ended, claims >= max_claims AS is_used
FROM claim_codes
WHERE code_sha256 = $1

-- name: find_claim
-- The site of a device that was claimed with this code, if it has this token now.
-- $1 code's id, $2 tenant, $3 device, $4 SHA-256 of the token
SELECT d.site_id
FROM device_claims c
JOIN device_registry d ON d.tenant_id = c.tenant_id AND d.device_id = c.device_id
WHERE c.claim_code_id = $1 AND c.tenant_id = $2 AND c.device_id = $3
  AND d.provision_token_hash = $4 AND d.status = 'ACTIVE'

-- name: note_claim
WITH claimed AS (
    INSERT INTO device_claims (claim_code_id, tenant_id, device_id) VALUES ($1, $2, $3)
)
UPDATE claim_codes SET claims = claims + 1 WHERE claim_code_id = $1
