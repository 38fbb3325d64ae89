-- Removes ended commands with their answers. Several hosts may run it: each skips what another removes.

-- name: wait_briefly
SET LOCAL lock_timeout = '5s'

-- name: forget_old
-- $1 the greatest age, $2 how many at most
DELETE FROM device_commands
WHERE (tenant_id, device_id, command_id) IN (
    SELECT tenant_id, device_id, command_id FROM device_commands
    WHERE finished_at < now() - $1::interval
    ORDER BY finished_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)

-- name: find_large
-- The tenants with more commands or bytes than they may have.
-- $1 most commands, $2 most bytes
SELECT tenant_id
FROM device_commands AS command
LEFT JOIN (
    SELECT tenant_id, device_id, command_id, sum(pg_column_size(answer)) AS size_bytes
    FROM device_command_acks AS answer
    GROUP BY tenant_id, device_id, command_id
) AS answers USING (tenant_id, device_id, command_id)
GROUP BY tenant_id
HAVING count(*) > $1 OR sum(pg_column_size(command) + coalesce(answers.size_bytes, 0)) > $2

-- name: forget_surplus
-- The oldest ended commands of one tenant beyond its bounds.
-- $1 tenant, $2 most commands, $3 most bytes, $4 how many at most
DELETE FROM device_commands
WHERE (tenant_id, device_id, command_id) IN (
    SELECT tenant_id, device_id, command_id FROM device_commands JOIN (
        SELECT tenant_id, device_id, command_id, row_number() OVER newest AS place, sum(size_bytes) OVER newest AS size_bytes
        FROM (
            SELECT tenant_id, device_id, command_id, created_at,
                   pg_column_size(command) + coalesce((
                       SELECT sum(pg_column_size(answer)) FROM device_command_acks AS answer
                       WHERE answer.tenant_id = $1 AND answer.device_id = command.device_id
                         AND answer.command_id = command.command_id
                   ), 0) AS size_bytes
            FROM device_commands AS command
            WHERE tenant_id = $1
        ) AS sized
        WINDOW newest AS (ORDER BY created_at DESC, device_id DESC, command_id DESC)
    ) AS ranked USING (tenant_id, device_id, command_id)
    WHERE finished_at IS NOT NULL AND (place > $2 OR size_bytes > $3)
    ORDER BY created_at
    LIMIT $4
    FOR UPDATE OF device_commands SKIP LOCKED
)
