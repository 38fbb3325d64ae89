-- name: note
-- Adds what a transaction has seen of devices, if there is a function that watches.
-- $1 tenants, $2 devices of each, $3 microseconds since 1970 of each device, $4 1 or 0 for whether that was
-- outside of a session; separated by commas
INSERT INTO device_activity (tenant_id, device_ids, seen_at, sessionless)
SELECT tenant_id, string_to_array(device_ids, ','),
       ARRAY(SELECT to_timestamp(at::bigint / 1000000) + at::bigint % 1000000 * interval '1 microsecond'
             FROM unnest(string_to_array(seen_at, ',')) WITH ORDINALITY AS part (at, place) ORDER BY place),
       string_to_array(sessionless, ',')::boolean[]
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS seen (tenant_id, device_ids, seen_at, sessionless)
WHERE EXISTS (SELECT FROM presence_watch WHERE watched_until > now())
