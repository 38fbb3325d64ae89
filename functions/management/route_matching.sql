-- name: routes
-- A page of a tenant's routes by name, with all that decides whether and how they take a message.
-- $1 tenant, $2 the last name of the page before, $3 how many
SELECT id, name, topic_filter, destination_type, payload_filter, is_enabled, paused_at, order_by,
       delivery_options::text AS delivery_options
FROM message_routes
WHERE tenant_id = $1 AND ($2::text IS NULL OR name > $2)
ORDER BY name
LIMIT $3
