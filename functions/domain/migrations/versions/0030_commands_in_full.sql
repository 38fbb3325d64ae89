-- Commands are sent again until they are answered, one after the other where that is asked for, and their ids are a
-- device's own.

ALTER TABLE device_command_acks
    DROP CONSTRAINT device_command_acks_command_id_fkey,
    ADD COLUMN tenant_id text,
    ADD COLUMN device_id text;

UPDATE device_command_acks AS answer SET tenant_id = command.tenant_id, device_id = command.device_id
FROM device_commands AS command WHERE command.command_id = answer.command_id;

ALTER TABLE device_command_acks
    DROP CONSTRAINT device_command_acks_pkey,
    ALTER COLUMN tenant_id SET NOT NULL,
    ALTER COLUMN device_id SET NOT NULL;

ALTER TABLE device_commands
    DROP CONSTRAINT device_commands_pkey,
    ADD PRIMARY KEY (tenant_id, device_id, command_id),
    -- The order in which commands were made; it names a command for ever, which an id that is used again does not.
    ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY,
    -- Sent only when every earlier command of the device that is in order has ended.
    ADD COLUMN in_order boolean NOT NULL DEFAULT false,
    -- How often it was handed to the stream of downlinks, and when it will be next; NULL while it waits for others, and
    -- when it is not sent any more.
    ADD COLUMN sends integer NOT NULL DEFAULT 0,
    ADD COLUMN next_send_at timestamptz CHECK (next_send_at IS NULL OR status IN ('queued', 'sent')),
    -- +1 with each change of the status
    ADD COLUMN version integer NOT NULL DEFAULT 1;

ALTER TABLE device_command_acks
    ADD PRIMARY KEY (tenant_id, device_id, command_id, stored_at_ns, sequence),
    ADD FOREIGN KEY (tenant_id, device_id, command_id) REFERENCES device_commands ON DELETE CASCADE;

-- What was stored and never sent.
UPDATE device_commands SET next_send_at = now() WHERE status = 'queued' AND expires_at > now();

CREATE INDEX device_commands_due ON device_commands (next_send_at) WHERE next_send_at IS NOT NULL;
DROP INDEX device_commands_open;
CREATE INDEX device_commands_open ON device_commands (tenant_id, device_id, number) WHERE finished_at IS NULL;
CREATE INDEX device_commands_in_order ON device_commands (tenant_id, device_id, number)
    WHERE in_order AND finished_at IS NULL;

-- A command that waited for another one, and is sent now, wakes polls as a new one does.
CREATE TRIGGER device_commands_released AFTER UPDATE OF next_send_at ON device_commands
    FOR EACH ROW WHEN (OLD.sends = 0 AND NEW.sends = 1) EXECUTE FUNCTION notify_device_command();
