-- name: device_status
SELECT status FROM device_registry WHERE tenant_id = $1 AND device_id = $2

-- name: insert
-- Returns no row when the id is used, or when the tenant has $8 commands under way.
INSERT INTO device_commands (command_id, tenant_id, device_id, name, arguments, expires_at, timeout_s)
SELECT $1, $2, $3, $4, $5::text::jsonb, now() + make_interval(secs => $6), $7
WHERE (SELECT count(*) FROM (
    SELECT FROM device_commands WHERE tenant_id = $2 AND finished_at IS NULL LIMIT $8
) AS under_way) < $8
ON CONFLICT DO NOTHING
RETURNING command_id, tenant_id, device_id, name, arguments::text, status, created_at, expires_at, timeout_s,
          sent_at, acked_at, finished_at, result::text

-- name: is_used
SELECT EXISTS (SELECT FROM device_commands WHERE command_id = $1)

-- name: find
SELECT command_id, tenant_id, device_id, name, arguments::text, status, created_at, expires_at, timeout_s,
       sent_at, acked_at, finished_at, result::text
FROM device_commands
WHERE tenant_id = $1 AND device_id = $2 AND command_id = $3

-- name: page
SELECT command_id, tenant_id, device_id, name, arguments::text, status, created_at, expires_at, timeout_s,
       sent_at, acked_at, finished_at, result::text
FROM device_commands
WHERE tenant_id = $1 AND device_id = $2
  AND ($3::text IS NULL OR status = $3)
  AND ($4::timestamptz IS NULL OR (created_at, command_id) < ($4, $5))
ORDER BY created_at DESC, command_id DESC
LIMIT $6

-- name: mark_sent
-- An answer can arrive before this statement runs: only a queued command becomes sent.
UPDATE device_commands
SET status = CASE status WHEN 'queued' THEN 'sent' ELSE status END, sent_at = coalesce(sent_at, now())
WHERE command_id = $1 AND status NOT IN ('expired', 'cancelled')
RETURNING command_id, tenant_id, device_id, name, arguments::text, status, created_at, expires_at, timeout_s,
          sent_at, acked_at, finished_at, result::text

-- name: cancel
UPDATE device_commands
SET status = 'cancelled', finished_at = now()
WHERE tenant_id = $1 AND device_id = $2 AND command_id = $3 AND status IN ('queued', 'sent', 'acked')
RETURNING command_id, tenant_id, device_id, name, arguments::text, status, created_at, expires_at, timeout_s,
          sent_at, acked_at, finished_at, result::text

-- name: end_overdue
UPDATE device_commands
SET status = CASE status WHEN 'queued' THEN 'expired' ELSE 'timed_out' END, finished_at = now()
WHERE command_id IN (
    SELECT command_id FROM device_commands
    WHERE (status = 'queued' AND expires_at <= now())
       OR (status IN ('sent', 'acked')
           AND coalesce(sent_at, acked_at) + make_interval(secs => timeout_s) <= now())
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
RETURNING status

-- name: lock
SELECT status FROM device_commands
WHERE tenant_id = $1 AND device_id = $2 AND command_id = $3
FOR UPDATE

-- name: note_ack
-- Returns no row when the same message was stored before.
INSERT INTO device_command_acks
    (command_id, stored_at_ns, sequence, status, result, late_ack, received_at)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7)
ON CONFLICT DO NOTHING
RETURNING command_id

-- name: count_answers
-- $1 command, $2 how many at most
SELECT count(*) FROM (SELECT FROM device_command_acks WHERE command_id = $1 LIMIT $2) AS answer

-- name: is_noted
SELECT EXISTS (
    SELECT FROM device_commands c JOIN device_command_acks a ON a.command_id = c.command_id
    WHERE c.tenant_id = $1 AND c.device_id = $2 AND a.stored_at_ns = $3 AND a.sequence = $4
)

-- name: advance
-- Compares and sets in one statement: $4 holds the states that this answer may change.
UPDATE device_commands
SET status = $2,
    result = coalesce($3::text::jsonb, result),
    acked_at = coalesce(acked_at, $5),
    finished_at = CASE WHEN $2 <> 'acked' THEN $5 END
WHERE command_id = $1 AND status = ANY ($4::text[])
RETURNING status

-- name: acks
SELECT status, result::text, late_ack, received_at
FROM device_command_acks
WHERE command_id = $1
ORDER BY received_at, sequence
LIMIT 100

-- name: open
-- A command without an answer that neither expired nor timed out, whether or not it was handed to MQTT.
SELECT command_id, name, arguments::text, status, expires_at
FROM device_commands
WHERE tenant_id = $1 AND device_id = $2 AND status IN ('queued', 'sent') AND command_id <> ALL ($3::text[])
  AND CASE status WHEN 'queued' THEN expires_at ELSE sent_at + make_interval(secs => timeout_s) END > now()
ORDER BY created_at, command_id
LIMIT $4

-- name: mark_all_sent
UPDATE device_commands SET status = 'sent', sent_at = now() WHERE command_id = ANY ($1::text[]) AND status = 'queued'
