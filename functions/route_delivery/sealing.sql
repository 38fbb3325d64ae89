-- Secrets of routes that are to be encrypted with another key.

-- name: schemas
SELECT name, schema FROM destination_types;

-- name: old
-- Routes with secrets that another key than the first encrypts, and routes that may have secrets in clear.
-- $1 after this route, $2 the first bytes of what the first key encrypts, $3 how many at most
SELECT id, destination_type, destination_config::text AS destination_config, destination_secrets
FROM message_routes
WHERE ($1::uuid IS NULL OR id > $1)
  AND (destination_secrets IS NULL OR substring(destination_secrets FROM 1 FOR 5) <> $2::bytea)
ORDER BY id
LIMIT $3;

-- name: replace
-- Replaces both parts of a route's configuration, unless somebody has changed it meanwhile; returns its endpoint, which a
-- changed configuration does not keep.
-- $1 route, $2 configuration, $3 secrets, $4 and $5 as they were read
UPDATE message_routes AS route
SET destination_config = $2::text::jsonb, destination_secrets = $3
FROM (SELECT id, endpoint FROM message_routes WHERE id = $1 FOR UPDATE) AS before
WHERE route.id = before.id
  AND route.destination_config = $4::text::jsonb
  AND route.destination_secrets IS NOT DISTINCT FROM $5
RETURNING before.endpoint;

-- name: link_endpoint
-- The configuration says the same as before, so it leads to the same endpoint. A disabled route without one is not probed.
-- $1 route, $2 endpoint
UPDATE message_routes SET endpoint = $2 WHERE id = $1;
