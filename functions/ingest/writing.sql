-- name: find_written
-- The redelivered messages that have their row already.
SELECT t.seq, t.time
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[]) AS asked (tenant_id, device_id, time, seq)
JOIN telemetry t ON t.tenant_id = asked.tenant_id AND t.device_id = asked.device_id
    AND t.time = asked.time AND t.seq = asked.seq

-- name: find_refused
-- The redelivered messages that are in quarantine already, or were counted for lack of room there.
SELECT q.sequence, q.stored_at
FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS asked (stream, sequence, stored_at)
JOIN quarantine_events q ON q.stream = asked.stream AND q.sequence = asked.sequence
    AND q.stored_at = asked.stored_at
UNION ALL
SELECT asked.sequence, asked.stored_at
FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS asked (stream, sequence, stored_at)
WHERE EXISTS (
    SELECT FROM quarantine_unkept AS unkept
    WHERE unkept.sequences @> asked.sequence AND unkept.stream = asked.stream
      AND asked.stored_at BETWEEN unkept.first_stored_at AND unkept.last_stored_at
)

-- name: refused_in
-- Refused messages of a part of a stream.
-- $1 stream, $2, $3 first and last sequence
SELECT sequence, stored_at FROM quarantine_events
WHERE stream = $1 AND sequence BETWEEN $2 AND $3

-- name: refused_of
-- $1 stream, $2 sequences
SELECT sequence, stored_at FROM quarantine_events
WHERE stream = $1 AND sequence = ANY ($2::bigint[])

-- name: insert_new
-- Inserts in the order of the key, so that two hosts with the same messages do not deadlock. Returns how many rows are new.
WITH inserted AS (
    INSERT INTO telemetry (time, tenant_id, device_id, site_id, msg_type, seq, metrics, device_time)
    SELECT time, tenant_id, device_id, site_id, msg_type, seq, metrics::jsonb, device_time
    FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[],
                $8::timestamptz[])
        AS row_of (time, tenant_id, device_id, site_id, msg_type, seq, metrics, device_time)
    ORDER BY tenant_id, device_id, time, seq
    ON CONFLICT DO NOTHING
    RETURNING tenant_id
)
SELECT tenant_id, count(*) AS rows FROM inserted GROUP BY tenant_id

-- name: lock_devices
-- One host at a time counts a device's sensors. Writes of telemetry do not wait for this lock.
SELECT 1 FROM device_registry
WHERE (tenant_id, device_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
ORDER BY tenant_id, device_id
FOR NO KEY UPDATE

-- name: register_sensors
-- Registers the new names up to the device's limit, in the order they were seen.
INSERT INTO device_sensors (tenant_id, device_id, sensor, first_seen_at)
SELECT tenant_id, device_id, sensor, first_seen_at
FROM (
    SELECT seen.*, d.sensor_limit,
           row_number() OVER (PARTITION BY seen.tenant_id, seen.device_id ORDER BY seen.place) AS nth,
           (SELECT count(*) FROM device_sensors s
            WHERE s.tenant_id = seen.tenant_id AND s.device_id = seen.device_id) AS registered
    FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) WITH ORDINALITY
        AS seen (tenant_id, device_id, sensor, first_seen_at, place)
    JOIN device_registry d ON d.tenant_id = seen.tenant_id AND d.device_id = seen.device_id
    WHERE NOT EXISTS (SELECT 1 FROM device_sensors s
                      WHERE s.tenant_id = seen.tenant_id AND s.device_id = seen.device_id
                        AND s.sensor = seen.sensor)
) fresh
WHERE nth <= sensor_limit - registered
ON CONFLICT DO NOTHING
