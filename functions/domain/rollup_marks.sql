-- name: add_marks
-- $1 tenants, $2 devices of each, $3 beginnings, $4 ends
INSERT INTO rollup_marks (level, tenant_id, device_ids, from_at, to_at, due_at)
SELECT 'minute', tenant_id, string_to_array(device_ids, ','), from_at, to_at, to_at
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[])
    AS mark (tenant_id, device_ids, from_at, to_at)
