-- name: insert
INSERT INTO subscriptions (tenant_id, type, status, device_limit, starts_at, expires_at)
VALUES ($1, $2, $3, $4, coalesce($5, now()), $6)
RETURNING subscription_id, tenant_id, type, status, device_limit, starts_at, expires_at, created_at, updated_at

-- name: has_same
SELECT CASE WHEN $2::text IS NULL THEN NOT EXISTS (SELECT FROM subscriptions WHERE tenant_id = $1)
       ELSE EXISTS (
           SELECT FROM subscriptions
           WHERE tenant_id = $1 AND type = $2 AND status = $3 AND device_limit = $4
             AND starts_at = coalesce($5, starts_at) AND expires_at IS NOT DISTINCT FROM $6::timestamptz
       ) END

-- name: page
SELECT subscription_id, tenant_id, type, status, device_limit, starts_at, expires_at, created_at, updated_at
FROM subscriptions
WHERE tenant_id = $1
  AND ($2::timestamptz IS NULL OR (created_at, subscription_id) > ($2, $3::uuid))
ORDER BY created_at, subscription_id
LIMIT $4

-- name: update
UPDATE subscriptions
SET status = coalesce($3, status),
    device_limit = coalesce($4, device_limit),
    expires_at = CASE WHEN $5::boolean THEN $6 ELSE expires_at END,
    updated_at = now()
WHERE tenant_id = $1 AND subscription_id = $2
RETURNING subscription_id, tenant_id, type, status, device_limit, starts_at, expires_at, created_at, updated_at
