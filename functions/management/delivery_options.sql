-- What routes say of their delivery.

-- name: find
-- $1 tenant, $2 route
SELECT destination_type, order_by, delivery_options::text
FROM message_routes
WHERE tenant_id = $1 AND id = $2

-- name: set
-- $1 tenant, $2 route, $3 order key, $4 options
UPDATE message_routes
SET order_by = $3, delivery_options = $4::text::jsonb, updated_at = now()
WHERE tenant_id = $1 AND id = $2
RETURNING id
