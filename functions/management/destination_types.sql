-- Types of destinations. A type is delivered when a deliverer has said so within four of its half minutes.

-- name: list
SELECT name, schema, announced_at, last_seen_at, last_seen_at > now() - interval '2 minutes' AS is_delivered
FROM destination_types
ORDER BY name
LIMIT 200

-- name: find
-- $1 names
SELECT name, schema, last_seen_at > now() - interval '2 minutes' AS is_delivered
FROM destination_types
WHERE name = ANY ($1::text[])
