-- name: find_device
SELECT EXISTS (SELECT FROM device_registry WHERE tenant_id = $1 AND device_id = $2);

-- name: read
SELECT version, desired::text, reported::text, desired_memory::text, reported_memory::text,
       last_sequence, last_stored_at_ns, last_stamp_ns, updated_at, deleted_at
FROM device_shadows
WHERE tenant_id = $1 AND device_id = $2;

-- name: ensure
-- Makes a row to lock: two concurrent first updates must not both begin at version 0.
INSERT INTO device_shadows (tenant_id, device_id, deleted_at)
VALUES ($1, $2, now())
ON CONFLICT DO NOTHING;

-- name: lock
SELECT version, desired::text, reported::text, desired_memory::text, reported_memory::text,
       last_sequence, last_stored_at_ns, last_stamp_ns, updated_at, deleted_at
FROM device_shadows
WHERE tenant_id = $1 AND device_id = $2
FOR UPDATE;

-- name: save
UPDATE device_shadows
SET version = $3, desired = $4::text::jsonb, reported = $5::text::jsonb,
    desired_memory = $6::text::jsonb, reported_memory = $7::text::jsonb,
    last_sequence = $8, last_stored_at_ns = $9, last_stamp_ns = $10,
    updated_at = now(), deleted_at = CASE WHEN $11::boolean THEN now() END
WHERE tenant_id = $1 AND device_id = $2
RETURNING updated_at;

-- name: note_update
-- Returns no row when the message was stored before.
INSERT INTO device_shadow_updates (tenant_id, device_id, stored_at_ns, sequence, version)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING
RETURNING version;

-- name: is_noted
SELECT EXISTS (
    SELECT FROM device_shadow_updates
    WHERE tenant_id = $1 AND device_id = $2 AND stored_at_ns = $3 AND sequence = $4
);

-- name: forget_updates
-- Drops updates so old that JetStream no longer redelivers them; each device drops its own.
DELETE FROM device_shadow_updates
WHERE tenant_id = $1 AND device_id = $2 AND stored_at_ns < $3;
