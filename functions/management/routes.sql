-- name: insert
INSERT INTO message_routes
    (tenant_id, name, topic_filter, destination_type, destination_config, payload_filter, is_enabled)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7)
RETURNING id, tenant_id, name, topic_filter, destination_type, destination_config::text, payload_filter,
          is_enabled, created_at, updated_at

-- name: find
SELECT id, tenant_id, name, topic_filter, destination_type, destination_config::text, payload_filter,
       is_enabled, created_at, updated_at
FROM message_routes
WHERE tenant_id = $1 AND id = $2

-- name: lock
SELECT id, tenant_id, name, topic_filter, destination_type, destination_config::text, payload_filter,
       is_enabled, created_at, updated_at
FROM message_routes
WHERE tenant_id = $1 AND id = $2
FOR UPDATE

-- name: page
SELECT id, tenant_id, name, topic_filter, destination_type, destination_config::text, payload_filter,
       is_enabled, created_at, updated_at
FROM message_routes
WHERE tenant_id = $1 AND ($2::text IS NULL OR name > $2)
ORDER BY name
LIMIT $3

-- name: update
UPDATE message_routes
SET name = $3, topic_filter = $4, destination_config = $5::text::jsonb, payload_filter = $6,
    is_enabled = $7, updated_at = now()
WHERE tenant_id = $1 AND id = $2
RETURNING id, tenant_id, name, topic_filter, destination_type, destination_config::text, payload_filter,
          is_enabled, created_at, updated_at

-- name: delete
DELETE FROM message_routes
WHERE tenant_id = $1 AND id = $2
RETURNING id
