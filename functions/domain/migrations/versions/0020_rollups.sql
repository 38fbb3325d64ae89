-- What the numbers of a device's sensor came to in each minute, hour and day (UTC).
CREATE TABLE telemetry_minutes (
    tenant_id text             NOT NULL,
    device_id text             NOT NULL,
    sensor    text             NOT NULL,
    -- the beginning of the minute, hour or day
    bucket    timestamptz      NOT NULL,
    count     bigint           NOT NULL,
    sum       double precision NOT NULL,
    min       double precision NOT NULL,
    max       double precision NOT NULL,
    PRIMARY KEY (tenant_id, device_id, sensor, bucket)
);
CREATE TABLE telemetry_hours (LIKE telemetry_minutes INCLUDING ALL);
CREATE TABLE telemetry_days (LIKE telemetry_minutes INCLUDING ALL);

-- Buckets that have to be computed again. A mark is committed together with the change that it tells of, so a bucket
-- without a mark is right. Every writer adds rows of its own, and nobody waits for another.
CREATE TABLE rollup_marks (
    -- what is to be computed: minutes from rows, hours from minutes, or days from hours
    level      text        NOT NULL CHECK (level IN ('minute', 'hour', 'day')),
    tenant_id  text        NOT NULL,
    -- NULL: all devices of the tenant
    device_ids text[],
    -- whole buckets of the level; minutes of one hour, or all of a day
    from_at    timestamptz NOT NULL,
    to_at      timestamptz NOT NULL CHECK (to_at > from_at AND to_at <= from_at + interval '24 hours'),
    -- not before; later than `to_at` when it could not be done
    due_at     timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000);
CREATE INDEX rollup_marks_tenant ON rollup_marks (tenant_id, from_at);
CREATE INDEX rollup_marks_newest ON rollup_marks (to_at);

-- A metric as a number for roll-ups; NULL for anything else. A number beyond 1e300 is left out, since sums of such
-- numbers overflow, and one that is smaller than 1e-300 is 0.
CREATE FUNCTION telemetry_number(value jsonb) RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN jsonb_typeof(value) = 'number' THEN
    CASE WHEN abs(value::numeric) > 1e300 THEN NULL
         WHEN abs(value::numeric) < 1e-300 THEN 0::double precision
         ELSE value::double precision END
END;

-- Marks all rows of a tenant in the days (UTC) of a range; returns the number of days.
CREATE FUNCTION mark_telemetry(tenant text, from_at timestamptz, to_at timestamptz) RETURNS bigint LANGUAGE sql AS $$
    WITH marked AS (
        INSERT INTO rollup_marks (level, tenant_id, device_ids, from_at, to_at, due_at)
        SELECT 'minute', tenant, NULL, day, day + interval '24 hours', day + interval '24 hours'
        FROM generate_series(date_bin('24 hours', from_at, '2000-01-01 00:00Z'), to_at, interval '24 hours') AS day
        WHERE day < to_at
        RETURNING 1
    )
    SELECT count(*) FROM marked
$$;

-- What was written before this version, and what hosts of an older version write until tomorrow.
SELECT mark_telemetry(tenant_id, day, day + interval '24 hours')
FROM tenants CROSS JOIN (
    SELECT to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' AS day
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'telemetry'::regclass AND c.relname ~ '^telemetry_[0-9]{8}$'
    UNION
    SELECT date_bin('24 hours', time, '2000-01-01 00:00Z') FROM telemetry_default
) AS known
WHERE day < now() AND EXISTS (
    SELECT FROM telemetry t
    WHERE t.tenant_id = tenants.tenant_id::text AND t.time >= known.day AND t.time < known.day + interval '24 hours'
);
SELECT mark_telemetry(tenant_id, now(), now() + interval '24 hours') FROM tenants;
