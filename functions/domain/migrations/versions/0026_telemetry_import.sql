-- Makes the partition of one day (UTC), which may be past; false if it is there. Rows of the default partition move into it.
CREATE FUNCTION ensure_telemetry_day(day date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    part     text        := 'telemetry_' || to_char(day, 'YYYYMMDD');
    begin_at timestamptz := day::timestamp AT TIME ZONE 'UTC';
    end_at   timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ensure_telemetry_partitions'));
    IF to_regclass(part) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE telemetry INCLUDING ALL)', part);
    LOCK TABLE telemetry_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format(
        'WITH moved AS (DELETE FROM telemetry_default WHERE time >= %L AND time < %L RETURNING *)
         INSERT INTO %I SELECT * FROM moved', begin_at, end_at, part);
    EXECUTE format('ALTER TABLE telemetry ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', part, begin_at, end_at);
    RETURN true;
END
$$;
