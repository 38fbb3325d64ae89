-- A message that is stored shortly after the end of a session may have come in it. One that came by HTTP or by a bridge did
-- not, and shows that the device has changed to another door.
ALTER TABLE device_presence
    -- when the device last sent something outside of a session
    ADD COLUMN sessionless_at timestamptz;
ALTER TABLE device_activity
    -- of each device: whether that was outside of a session. A host of the version before notes nothing here.
    ADD COLUMN sessionless boolean[] NOT NULL DEFAULT '{}';
