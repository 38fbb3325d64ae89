-- How many whole days (UTC) before today a tenant's telemetry is kept: rows and roll-ups by the minute, and roll-ups by
-- the hour and day. NULL: as long as the installation keeps it.
ALTER TABLE tenants
    ADD COLUMN telemetry_days integer CHECK (telemetry_days BETWEEN 1 AND 36500),
    ADD COLUMN rollup_days integer CHECK (rollup_days BETWEEN 1 AND 36500),
    ADD CONSTRAINT tenants_retention CHECK (rollup_days IS NULL OR telemetry_days IS NOT NULL AND rollup_days >= telemetry_days);

-- What was removed for its age. Roll-ups of rows before `rows_from` are never computed again, and minutes are not read.
CREATE TABLE telemetry_floors (
    tenant_id tenant_name PRIMARY KEY REFERENCES tenants ON DELETE CASCADE,
    -- rows and minutes before this midnight (UTC) are gone or being removed
    rows_from timestamptz NOT NULL,
    -- before this midnight nothing was left but rows that came late
    removed_before timestamptz
);

-- By day and not by bucket: no reader of buckets then mistakes this index for the primary key, which is better for it
-- although the planner, which knows nothing of the newest buckets, cannot tell.
CREATE INDEX telemetry_minutes_by_age ON telemetry_minutes (tenant_id, date_bin('24 hours', bucket, '2000-01-01 00:00Z'));
CREATE INDEX telemetry_hours_by_age ON telemetry_hours (tenant_id, date_bin('24 hours', bucket, '2000-01-01 00:00Z'));
CREATE INDEX telemetry_days_by_age ON telemetry_days (tenant_id, date_bin('24 hours', bucket, '2000-01-01 00:00Z'));

-- Removes up to `at_most` of a tenant's rows before a midnight (UTC), from the partitions of the days since `since`;
-- returns how many.
CREATE FUNCTION remove_old_telemetry(tenant text, since timestamptz, before timestamptz, at_most integer)
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    part    regclass;
    gone    integer;
    removed integer := 0;
BEGIN
    FOR part IN
        SELECT c.oid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'telemetry'::regclass AND (
            c.relname = 'telemetry_default'
            OR c.relname ~ '^telemetry_[0-9]{8}$'
               AND to_date(right(c.relname, 8), 'YYYYMMDD') < (before AT TIME ZONE 'UTC')::date
               AND to_date(right(c.relname, 8), 'YYYYMMDD') >= coalesce((since AT TIME ZONE 'UTC')::date, '-infinity'))
        ORDER BY c.relname
    LOOP
        BEGIN
            EXECUTE format(
                'DELETE FROM %1$s WHERE ctid = ANY (ARRAY(
                     SELECT ctid FROM %1$s WHERE tenant_id = $1 AND time < $2 LIMIT $3))', part)
            USING tenant, before, at_most - removed;
            GET DIAGNOSTICS gone = ROW_COUNT;
            removed := removed + gone;
        EXCEPTION WHEN undefined_table THEN
            -- The partition was dropped meanwhile.
            NULL;
        END;
        EXIT WHEN removed >= at_most;
    END LOOP;
    RETURN removed;
END
$$;
