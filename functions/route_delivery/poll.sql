-- Routes that are polled: bytes of tenants, readers and their positions.

-- name: take_bytes
-- Counts bytes of a tenant on a day; no row when the tenant has had as many within a week as it may have.
-- $1 tenant, $2 day, $3 bytes, $4 the most
INSERT INTO poll_bytes AS known (tenant_id, day, bytes)
SELECT $1, $2, $3::bigint
WHERE $3::bigint + coalesce(
    (SELECT sum(bytes) FROM poll_bytes WHERE tenant_id = $1 AND day > $2::date - 8), 0
) <= $4::bigint
ON CONFLICT (tenant_id, day) DO UPDATE SET bytes = known.bytes + excluded.bytes
RETURNING bytes

-- name: find_route
-- A polled route of a tenant.
-- $1 tenant, $2 route
SELECT id, destination_config::text AS destination_config, destination_secrets
FROM message_routes
WHERE tenant_id = $1 AND id = $2 AND destination_type = 'poll'

-- name: find_reader
-- $1 route, $2 reader
SELECT generation FROM poll_readers WHERE route_id = $1 AND name = $2

-- name: add_reader
-- A new reader, or the next generation of one, which begins elsewhere. No row when the route has as many as it may have.
-- $1 route, $2 reader, $3 the most
INSERT INTO poll_readers AS known (route_id, name)
SELECT $1::uuid, $2
WHERE EXISTS (SELECT 1 FROM poll_readers WHERE route_id = $1 AND name = $2)
   OR (SELECT count(*) FROM poll_readers WHERE route_id = $1) < $3::integer
ON CONFLICT (route_id, name) DO UPDATE SET generation = known.generation + 1, moved_at = now()
RETURNING generation

-- name: remove_reader
-- $1 route, $2 reader
DELETE FROM poll_readers WHERE route_id = $1 AND name = $2 RETURNING generation

-- name: list_readers
-- $1 route
SELECT name, generation, moved_at FROM poll_readers WHERE route_id = $1 ORDER BY name

-- name: all_readers
SELECT route_id::text, name, generation FROM poll_readers

-- name: forget_readers
-- $1 routes, $2 readers, $3 generations that have no consumer any more
DELETE FROM poll_readers AS reader
USING unnest($1::uuid[], $2::text[], $3::integer[]) AS gone (route_id, name, generation)
WHERE (reader.route_id, reader.name, reader.generation) = (gone.route_id, gone.name, gone.generation)
  AND reader.moved_at < now() - interval '1 hour'

-- name: forget_bytes
DELETE FROM poll_bytes WHERE day < current_date - 9
