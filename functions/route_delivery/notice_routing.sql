-- The routes that want notices.

-- name: routes
-- A tenant's enabled routes for notices.
-- $1 tenant, $2 how many at most
SELECT id::text AS route_id, topic_filter, destination_type, payload_filter, order_by
FROM message_routes
WHERE tenant_id = $1 AND is_enabled AND split_part(topic_filter, '/', 3) = 'notices'
ORDER BY id
LIMIT $2;
