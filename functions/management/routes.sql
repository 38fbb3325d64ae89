-- name: insert
INSERT INTO message_routes
    (tenant_id, name, topic_filter, destination_type, destination_config, payload_filter, is_enabled,
     destination_secrets, id)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7, $8, $9)
RETURNING id, tenant_id, name, topic_filter, destination_type, destination_config::text, destination_secrets,
          payload_filter, is_enabled, created_at, updated_at

-- name: find
SELECT id, tenant_id, name, topic_filter, destination_type, destination_config::text, destination_secrets,
       payload_filter, is_enabled, created_at, updated_at
FROM message_routes
WHERE tenant_id = $1 AND id = $2

-- name: lock
SELECT id, tenant_id, name, topic_filter, destination_type, destination_config::text, destination_secrets,
       payload_filter, is_enabled, created_at, updated_at, endpoint
FROM message_routes
WHERE tenant_id = $1 AND id = $2
FOR UPDATE

-- name: page
SELECT id, tenant_id, name, topic_filter, destination_type, destination_config::text, destination_secrets,
       payload_filter, is_enabled, created_at, updated_at
FROM message_routes
WHERE tenant_id = $1 AND ($2::text IS NULL OR name > $2)
ORDER BY name
LIMIT $3

-- name: update
UPDATE message_routes
SET name = $3, topic_filter = $4, destination_config = $5::text::jsonb, payload_filter = $6,
    is_enabled = $7, destination_secrets = $8, updated_at = now()
WHERE tenant_id = $1 AND id = $2
RETURNING id, tenant_id, name, topic_filter, destination_type, destination_config::text, destination_secrets,
          payload_filter, is_enabled, created_at, updated_at

-- name: link_endpoint
-- A route leads where it led before its configuration was written.
-- $1 tenant, $2 route, $3 endpoint
UPDATE message_routes SET endpoint = $3 WHERE tenant_id = $1 AND id = $2

-- name: disable
-- A person disables a route for good, that the runtime had disabled for its endpoint until it works again.
-- $1 tenant, $2 route
UPDATE message_routes SET disabled_reason = NULL, disabled_at = NULL
WHERE tenant_id = $1 AND id = $2 AND disabled_reason IS NOT NULL

-- name: delete
DELETE FROM message_routes
WHERE tenant_id = $1 AND id = $2
RETURNING id
