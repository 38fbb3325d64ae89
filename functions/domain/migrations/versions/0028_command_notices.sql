-- Wakes the polls of the device when the transaction that stored its command commits.
CREATE FUNCTION notify_device_command() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('device_commands', NEW.tenant_id || '/' || NEW.device_id);
    RETURN NULL;
END
$$;

CREATE TRIGGER device_commands_notify AFTER INSERT ON device_commands
    FOR EACH ROW EXECUTE FUNCTION notify_device_command();
