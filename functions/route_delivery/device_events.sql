-- name: routes
-- The enabled routes for events of some tenants, the oldest first.
-- $1 tenants, $2 first levels of the events' kinds, $3 how many of a tenant at most
SELECT route_id, tenant_id, topic_filter, destination_type, payload_filter, order_by
FROM (
    SELECT id::text AS route_id, tenant_id::text, topic_filter, destination_type, payload_filter, order_by,
           row_number() OVER (PARTITION BY tenant_id ORDER BY created_at, id) AS place
    FROM message_routes
    WHERE tenant_id = ANY ($1::text[]) AND is_enabled AND split_part(topic_filter, '/', 5) = ANY ($2::text[])
) AS route
WHERE place <= $3
