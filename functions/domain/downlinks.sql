-- name: send_open
-- Makes open commands of some devices due.
-- $1 tenants, $2 devices
UPDATE device_commands AS command
SET next_send_at = now()
FROM unnest($1::text[], $2::text[]) AS device (tenant_id, device_id)
CROSS JOIN LATERAL (
    SELECT command_id FROM device_commands
    WHERE tenant_id = device.tenant_id AND device_id = device.device_id
      AND finished_at IS NULL AND next_send_at > now()
    ORDER BY number
    LIMIT 20
    FOR UPDATE SKIP LOCKED
) AS open
WHERE (command.tenant_id, command.device_id, command.command_id)
    = (device.tenant_id, device.device_id, open.command_id)
