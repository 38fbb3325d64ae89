-- When the time of a command is up, so that those whose time is up are found without a look at all others.

-- NULL once it has ended
ALTER TABLE device_commands ADD COLUMN ends_at timestamptz;

CREATE FUNCTION set_command_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.ends_at := CASE
        WHEN NEW.finished_at IS NOT NULL THEN NULL
        WHEN NEW.status = 'queued' THEN NEW.expires_at
        ELSE coalesce(NEW.sent_at, NEW.acked_at) + make_interval(secs => NEW.timeout_s)
    END;
    RETURN NEW;
END
$$;

CREATE TRIGGER device_commands_end BEFORE INSERT OR UPDATE ON device_commands
    FOR EACH ROW EXECUTE FUNCTION set_command_end();

UPDATE device_commands SET ends_at = NULL WHERE finished_at IS NULL;

DROP INDEX device_commands_unsent;
DROP INDEX device_commands_unanswered;
CREATE INDEX device_commands_overdue ON device_commands (ends_at) WHERE ends_at IS NOT NULL;
