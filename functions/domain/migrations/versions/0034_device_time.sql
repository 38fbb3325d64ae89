-- When the device measured, by its own clock; NULL where it said nothing, or nothing credible.
ALTER TABLE telemetry ADD COLUMN device_time timestamptz;

-- Rows that came late are looked for here, all others by `time`, which is then about the same. So readings that are sent
-- when they are measured cost no second index.
CREATE INDEX telemetry_late ON telemetry (tenant_id, device_id, device_time)
    WHERE time - device_time > interval '1 minute';
