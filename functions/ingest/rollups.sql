-- name: lock
-- One host at a time rolls up, and none while rows are removed: a result that another host has
-- overtaken must not be written.
SELECT pg_try_advisory_xact_lock(hashtext('telemetry_rollups'))

-- name: set_up
-- A plan for any span reads whole partitions, as it cannot know how short the spans are.
SELECT set_config('statement_timeout', $1, true), set_config('plan_cache_mode', 'force_custom_plan', true)

-- name: newest_due
-- The newest first, so that what devices send now does not wait for an import or for years of old rows.
-- $1 the present less the time that rows may be late
SELECT level, tenant_id, from_at, to_at
FROM rollup_marks
WHERE due_at <= $1
ORDER BY to_at DESC
LIMIT 1

-- name: claim
-- Takes the due marks of a tenant in a span: the span that they cover together, and their devices. `all_devices`:
-- one of them is of all. The tenant's devices then are those that are registered.
-- $1 level, $2 tenant, $3 beginning, $4 end, $5 as in newest_due
WITH taken AS (
    DELETE FROM rollup_marks
    WHERE level = $1 AND tenant_id = $2 AND from_at >= $3 AND to_at <= $4 AND due_at <= $5
    RETURNING device_ids, from_at, to_at
),
whole AS (
    SELECT min(from_at) AS from_at, max(to_at) AS to_at, bool_or(device_ids IS NULL) AS all_devices FROM taken
)
SELECT whole.from_at, whole.to_at,
       (SELECT rows_from FROM telemetry_floors WHERE tenant_id = $2) AS rows_from,
       CASE WHEN whole.all_devices
            THEN ARRAY(SELECT device_id::text FROM device_registry WHERE tenant_id = $2 ORDER BY device_id)
            ELSE ARRAY(SELECT DISTINCT id FROM taken, unnest(device_ids) AS id ORDER BY id) END AS device_ids
FROM whole

-- name: split
-- Replaces a mark of a day by marks of its hours, so that one step is not too long.
-- $1 tenant, $2 beginning, $3 end
WITH taken AS (
    DELETE FROM rollup_marks
    WHERE level = 'minute' AND tenant_id = $1 AND from_at = $2 AND to_at = $3
    RETURNING *
)
INSERT INTO rollup_marks (level, tenant_id, device_ids, from_at, to_at, due_at)
SELECT DISTINCT taken.level, taken.tenant_id, taken.device_ids, hour, least(hour + interval '1 hour', taken.to_at),
       taken.due_at
FROM taken CROSS JOIN generate_series(taken.from_at, taken.to_at - interval '1 microsecond', interval '1 hour') AS hour

-- name: postpone
-- $1 level, $2 tenant, $3 beginning, $4 end, $5 until when
UPDATE rollup_marks SET due_at = $5
WHERE level = $1 AND tenant_id = $2 AND from_at >= $3 AND to_at <= $4 AND due_at < $5

-- name: mark
-- $1 level, $2 tenant, $3 devices, $4 beginning, $5 end
INSERT INTO rollup_marks (level, tenant_id, device_ids, from_at, to_at, due_at)
VALUES ($1, $2, $3, $4, $5, $5)

-- name: roll_minute
-- Minutes from rows, for the device's registered sensors. A count that would shrink means that rows were removed
-- since, so the bucket stays as it was. Of rows that change nothing, nothing is written.
-- $1 tenant, $2 devices, $3 beginning, $4 end
INSERT INTO telemetry_minutes AS known (tenant_id, device_id, sensor, bucket, count, sum, min, max)
SELECT $1, device.id, measured.*
FROM unnest($2::text[]) AS device (id)
CROSS JOIN LATERAL (
    SELECT ARRAY(SELECT sensor FROM device_sensors s WHERE s.tenant_id = $1 AND s.device_id = device.id) AS names
) AS sensors
CROSS JOIN LATERAL (
    SELECT name, minute, count(*) AS count, sum(number), min(number), max(number)
    FROM (
        -- `OFFSET 0`: once for each value, and not once for each of the aggregates. Not in FROM: a call there takes
        -- ten times as long.
        SELECT metric.key AS name, date_bin('1 minute', t.time, '2000-01-01 00:00Z') AS minute,
               telemetry_number(metric.value) AS number
        FROM telemetry t
        CROSS JOIN LATERAL jsonb_each(CASE WHEN jsonb_typeof(t.metrics) = 'object' THEN t.metrics END) AS metric
        WHERE t.tenant_id = $1 AND t.device_id = device.id AND t.time >= $3 AND t.time < $4
          AND metric.key = ANY (sensors.names)
        OFFSET 0
    ) AS value
    WHERE number IS NOT NULL
    GROUP BY 1, 2
) AS measured
ON CONFLICT (tenant_id, device_id, sensor, bucket) DO UPDATE
SET count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max
WHERE known.count <= excluded.count
  AND (known.count, known.sum, known.min, known.max)
      IS DISTINCT FROM (excluded.count, excluded.sum, excluded.min, excluded.max)

-- name: roll_hour
-- Hours from minutes; parameters as above.
INSERT INTO telemetry_hours AS known (tenant_id, device_id, sensor, bucket, count, sum, min, max)
SELECT $1, device.id, sensors.sensor, $3, measured.*
FROM unnest($2::text[]) AS device (id)
JOIN device_sensors sensors ON sensors.tenant_id = $1 AND sensors.device_id = device.id
CROSS JOIN LATERAL (
    SELECT sum(count)::bigint AS count, sum(sum), min(min), max(max)
    FROM telemetry_minutes
    WHERE tenant_id = $1 AND device_id = device.id AND sensor = sensors.sensor AND bucket >= $3 AND bucket < $4
) AS measured
WHERE measured.count > 0
ON CONFLICT (tenant_id, device_id, sensor, bucket) DO UPDATE
SET count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max
WHERE known.count <= excluded.count
  AND (known.count, known.sum, known.min, known.max)
      IS DISTINCT FROM (excluded.count, excluded.sum, excluded.min, excluded.max)

-- name: roll_day
-- Days from hours; parameters as above.
INSERT INTO telemetry_days AS known (tenant_id, device_id, sensor, bucket, count, sum, min, max)
SELECT $1, device.id, sensors.sensor, $3, measured.*
FROM unnest($2::text[]) AS device (id)
JOIN device_sensors sensors ON sensors.tenant_id = $1 AND sensors.device_id = device.id
CROSS JOIN LATERAL (
    SELECT sum(count)::bigint AS count, sum(sum), min(min), max(max)
    FROM telemetry_hours
    WHERE tenant_id = $1 AND device_id = device.id AND sensor = sensors.sensor AND bucket >= $3 AND bucket < $4
) AS measured
WHERE measured.count > 0
ON CONFLICT (tenant_id, device_id, sensor, bucket) DO UPDATE
SET count = excluded.count, sum = excluded.sum, min = excluded.min, max = excluded.max
WHERE known.count <= excluded.count
  AND (known.count, known.sum, known.min, known.max)
      IS DISTINCT FROM (excluded.count, excluded.sum, excluded.min, excluded.max)
