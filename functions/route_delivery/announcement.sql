-- Types of destinations that are delivered.

-- name: announce
-- $1 type, $2 JSON schema
INSERT INTO destination_types AS known (name, schema) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET
    schema = excluded.schema,
    announced_at = CASE WHEN known.schema = excluded.schema THEN known.announced_at ELSE now() END,
    last_seen_at = now();

-- name: seen
-- The schema of the deliverer that started last stays; a row that somebody has deleted comes back.
-- $1 type, $2 JSON schema
INSERT INTO destination_types (name, schema) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET last_seen_at = now();

-- name: count_unreadable
-- How many routes of a type have secrets that are encrypted with other keys.
-- $1 type, $2 first bytes of what can be decrypted
SELECT count(*) FROM message_routes
WHERE destination_type = $1
  AND destination_secrets IS NOT NULL
  AND NOT (substring(destination_secrets FROM 1 FOR 5) = ANY ($2::bytea[]));
