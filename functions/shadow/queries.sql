-- name: find_device
SELECT EXISTS (SELECT FROM device_registry WHERE tenant_id = $1 AND device_id = $2);

-- name: read
SELECT version, desired::text, reported::text, desired_memory::text, reported_memory::text,
       last_sequence, last_stored_at_ns AS last_message_ns, last_stamp_ns, updated_at, deleted_at,
       (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint AS read_at_ns
FROM device_shadows
WHERE tenant_id = $1 AND device_id = $2 AND name = $3;

-- name: lock
SELECT version, desired::text, reported::text, desired_memory::text, reported_memory::text,
       last_sequence, last_stored_at_ns AS last_message_ns, last_stamp_ns, updated_at, deleted_at,
       (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint AS read_at_ns
FROM device_shadows
WHERE tenant_id = $1 AND device_id = $2 AND name = $3
FOR UPDATE;

-- name: lock_device
-- Two transactions that each make a shadow must not both find room for the last one.
SELECT FROM device_registry WHERE tenant_id = $1 AND device_id = $2 FOR NO KEY UPDATE;

-- name: count_named
SELECT count(*) FROM device_shadows WHERE tenant_id = $1 AND device_id = $2 AND name <> '';

-- name: make
-- Makes a row to lock: two concurrent first updates must not both begin at version 0.
INSERT INTO device_shadows (tenant_id, device_id, name, deleted_at)
VALUES ($1, $2, $3, now())
ON CONFLICT DO NOTHING;

-- name: drop_unused
-- Removes what `make` made for a change that was refused.
DELETE FROM device_shadows WHERE tenant_id = $1 AND device_id = $2 AND name = $3 AND version = 0;

-- name: save
-- A section that is NULL here stays as it is, and its values are not written again.
UPDATE device_shadows
SET version = $4,
    desired = coalesce($5::text::jsonb, desired), desired_memory = coalesce($6::text::jsonb, desired_memory),
    reported = coalesce($7::text::jsonb, reported), reported_memory = coalesce($8::text::jsonb, reported_memory),
    last_sequence = $9, last_stored_at_ns = $10, last_stamp_ns = $11,
    updated_at = now(), deleted_at = CASE WHEN $12::boolean THEN now() END
WHERE tenant_id = $1 AND device_id = $2 AND name = $3
RETURNING updated_at;

-- name: list
SELECT name, version, updated_at
FROM device_shadows
WHERE tenant_id = $1 AND device_id = $2 AND deleted_at IS NULL
ORDER BY name;

-- name: note_request
-- Returns no row when the message was noted before.
INSERT INTO device_shadow_requests (tenant_id, device_id, stored_at_ns, sequence)
VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING
RETURNING sequence;

-- name: is_noted
SELECT EXISTS (
    SELECT FROM device_shadow_requests
    WHERE tenant_id = $1 AND device_id = $2 AND stored_at_ns = $3 AND sequence = $4
);

-- name: forget_requests
-- Drops the device's notes that are older than $3, and those beyond its newest $4.
DELETE FROM device_shadow_requests
WHERE tenant_id = $1 AND device_id = $2 AND stored_at_ns < greatest($3, (
    SELECT stored_at_ns FROM device_shadow_requests
    WHERE tenant_id = $1 AND device_id = $2
    ORDER BY stored_at_ns DESC
    OFFSET $4 - 1
    LIMIT 1
));

-- name: forget_deleted
-- $1 the least age, $2 how many at most
DELETE FROM device_shadows
WHERE (tenant_id, device_id, name) IN (
    SELECT tenant_id, device_id, name FROM device_shadows
    WHERE deleted_at < now() - $1::interval AND name <> ''
    LIMIT $2
    FOR UPDATE SKIP LOCKED
);
