-- name: devices
-- The devices that have the sensor, in order.
-- $1 tenant, $2 sensor, $3 devices: NULL for all, $4 after which, $5 how many
SELECT device_id::text
FROM device_sensors
WHERE tenant_id = $1 AND sensor = $2
  AND ($3::text[] IS NULL OR device_id = ANY ($3))
  AND ($4::text IS NULL OR device_id > $4)
ORDER BY device_id
LIMIT $5

-- name: is_tenant
SELECT EXISTS (SELECT FROM tenants WHERE tenant_id = $1)

-- name: set_up
-- A plan for any span reads whole partitions, as it cannot know how short the spans are.
SELECT set_config('plan_cache_mode', 'force_custom_plan', true)

-- name: floor
-- From when on there are rows and minutes; NULL: from the beginning.
SELECT rows_from FROM telemetry_floors WHERE tenant_id = $1

-- name: marked
-- What is not rolled up yet. A mark has at most a day. Below the floor rows are being removed, and only a day may still
-- have to be computed, from its hours.
-- $1 tenant, $2 beginning, $3 end, $4 the floor
SELECT level, lower(span) AS from_at, upper(span) AS to_at
FROM (
    SELECT level, unnest(range_agg(tstzrange(from_at, to_at))) AS span
    FROM rollup_marks
    WHERE tenant_id = $1 AND from_at > $2::timestamptz - interval '25 hours' AND from_at < $3 AND to_at > $2
      AND (level = 'day' OR from_at >= coalesce($4::timestamptz, '-infinity'))
    GROUP BY level
) AS marked

-- name: buckets
-- What the sensor came to, for each device and span: the number of the bucket that it belongs to, from 1, and the
-- values. A bucket may come several times, from spans of different tables or as the parts of one table.
-- $1 tenant, $2 devices, $3 sensor, $4 beginnings of all buckets; spans of the days, hours, minutes and rows to read:
-- $5 and $6, $7 and $8, $9 and $10, $11 and $12; whether counts, sums, least and greatest are wanted: $13 to $16
SELECT device.id AS device_id, found.*
FROM unnest($2::text[]) AS device (id)
CROSS JOIN unnest($5::timestamptz[], $6::timestamptz[]) AS span (from_at, to_at)
CROSS JOIN LATERAL (
    SELECT array_agg(width_bucket(bucket, $4::timestamptz[])) AS places, array_agg(count) FILTER (WHERE $13::boolean) AS count,
           array_agg(sum) FILTER (WHERE $14::boolean) AS sum, array_agg(min) FILTER (WHERE $15) AS min,
           array_agg(max) FILTER (WHERE $16) AS max
    FROM telemetry_days
    WHERE tenant_id = $1 AND device_id = device.id AND sensor = $3
      AND bucket >= span.from_at AND bucket < span.to_at
) AS found
WHERE found.places IS NOT NULL
UNION ALL
SELECT device.id AS device_id, found.*
FROM unnest($2::text[]) AS device (id)
CROSS JOIN unnest($7::timestamptz[], $8::timestamptz[]) AS span (from_at, to_at)
CROSS JOIN LATERAL (
    SELECT array_agg(width_bucket(bucket, $4::timestamptz[])) AS places, array_agg(count) FILTER (WHERE $13) AS count,
           array_agg(sum) FILTER (WHERE $14) AS sum, array_agg(min) FILTER (WHERE $15) AS min,
           array_agg(max) FILTER (WHERE $16) AS max
    FROM telemetry_hours
    WHERE tenant_id = $1 AND device_id = device.id AND sensor = $3
      AND bucket >= span.from_at AND bucket < span.to_at
) AS found
WHERE found.places IS NOT NULL
UNION ALL
SELECT device.id AS device_id, found.*
FROM unnest($2::text[]) AS device (id)
CROSS JOIN unnest($9::timestamptz[], $10::timestamptz[]) AS span (from_at, to_at)
CROSS JOIN LATERAL (
    SELECT array_agg(width_bucket(bucket, $4::timestamptz[])) AS places, array_agg(count) FILTER (WHERE $13) AS count,
           array_agg(sum) FILTER (WHERE $14) AS sum, array_agg(min) FILTER (WHERE $15) AS min,
           array_agg(max) FILTER (WHERE $16) AS max
    FROM telemetry_minutes
    WHERE tenant_id = $1 AND device_id = device.id AND sensor = $3
      AND bucket >= span.from_at AND bucket < span.to_at
) AS found
WHERE found.places IS NOT NULL
UNION ALL
SELECT device.id AS device_id, found.*
FROM unnest($2::text[]) AS device (id)
CROSS JOIN unnest($11::timestamptz[], $12::timestamptz[]) AS span (from_at, to_at)
CROSS JOIN LATERAL (
    SELECT array_agg(place) AS places, array_agg(count) FILTER (WHERE $13) AS count,
           array_agg(sum) FILTER (WHERE $14) AS sum, array_agg(min) FILTER (WHERE $15) AS min,
           array_agg(max) FILTER (WHERE $16) AS max
    FROM (
        SELECT width_bucket(time, $4::timestamptz[]) AS place, count(number), sum(number), min(number), max(number)
        FROM (
            SELECT t.time, telemetry_number(t.metrics -> $3) AS number
            FROM telemetry t
            WHERE t.tenant_id = $1 AND t.device_id = device.id AND t.time >= span.from_at AND t.time < span.to_at
            OFFSET 0
        ) AS value
        WHERE number IS NOT NULL
        GROUP BY 1
    ) AS bucket
) AS found
WHERE found.places IS NOT NULL
