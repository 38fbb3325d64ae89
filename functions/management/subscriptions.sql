-- What devices without a subscription of their own use, counts for every one that is no ADDON.

-- name: now
SELECT now()

-- name: all
SELECT type, status, device_limit, starts_at, expires_at FROM subscriptions WHERE tenant_id = $1

-- name: insert
INSERT INTO subscriptions AS s (tenant_id, type, status, device_limit, starts_at, expires_at)
VALUES ($1, $2, $3, $4, coalesce($5, now()), $6)
RETURNING subscription_id, tenant_id, type, status, device_limit, starts_at, expires_at, created_at, updated_at,
       coalesce((
           SELECT active FROM device_counts c
           WHERE c.tenant_id = s.tenant_id AND c.subscription_id = s.subscription_id
       ), 0) + CASE WHEN s.type = 'ADDON' THEN 0 ELSE coalesce((
           SELECT active FROM device_counts c WHERE c.tenant_id = s.tenant_id AND c.subscription_id IS NULL
       ), 0) END AS active_device_count

-- name: page
SELECT subscription_id, tenant_id, type, status, device_limit, starts_at, expires_at, created_at, updated_at,
       coalesce((
           SELECT active FROM device_counts c
           WHERE c.tenant_id = s.tenant_id AND c.subscription_id = s.subscription_id
       ), 0) + CASE WHEN s.type = 'ADDON' THEN 0 ELSE coalesce((
           SELECT active FROM device_counts c WHERE c.tenant_id = s.tenant_id AND c.subscription_id IS NULL
       ), 0) END AS active_device_count
FROM subscriptions s
WHERE tenant_id = $1
  AND ($2::timestamptz IS NULL OR (created_at, subscription_id) > ($2, $3::uuid))
ORDER BY created_at, subscription_id
LIMIT $4

-- name: lock
SELECT expires_at, now() AS now FROM subscriptions
WHERE tenant_id = $1 AND subscription_id = $2
FOR NO KEY UPDATE

-- name: update
UPDATE subscriptions AS s
SET status = coalesce($3, status),
    device_limit = coalesce($4, device_limit),
    expires_at = CASE WHEN $5::boolean THEN $6 ELSE expires_at END,
    updated_at = now()
WHERE tenant_id = $1 AND subscription_id = $2
RETURNING subscription_id, tenant_id, type, status, device_limit, starts_at, expires_at, created_at, updated_at,
       coalesce((
           SELECT active FROM device_counts c
           WHERE c.tenant_id = s.tenant_id AND c.subscription_id = s.subscription_id
       ), 0) + CASE WHEN s.type = 'ADDON' THEN 0 ELSE coalesce((
           SELECT active FROM device_counts c WHERE c.tenant_id = s.tenant_id AND c.subscription_id IS NULL
       ), 0) END AS active_device_count
