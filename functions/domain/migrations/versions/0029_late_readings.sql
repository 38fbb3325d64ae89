-- When the device measured, by its own clock; NULL where it said nothing, or nothing credible.
ALTER TABLE telemetry ADD COLUMN device_time timestamptz;

-- Rows that came late are looked for here, all others by `time`, which is then about the same. So readings that are sent
-- when they are measured cost no second index.
CREATE INDEX telemetry_late ON telemetry (tenant_id, device_id, device_time)
    WHERE time - device_time > interval '1 minute';

-- Whether a function judges messages on the subject, so that one from quarantine may be sent on it once more. Never what
-- devices receive: `tenant.{tenant}.device.{device}.commands`.
CREATE FUNCTION is_judged(subject text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN split_part(subject, '.', 1) IN ('telemetry', 'shadow', 'commands')
    OR (subject ~ '^tenant\.[^.]+\.device\.[^.]+\.[a-z0-9_]{1,32}$'
        AND split_part(subject, '.', 5) NOT IN ('commands', 'routed'));
