-- name: device_status
SELECT status FROM device_registry WHERE tenant_id = $1 AND device_id = $2

-- name: lock_order
-- Held until the transaction ends, so that commands in order get their numbers in the order of their commits.
SELECT pg_advisory_xact_lock(hashtextextended('commands/' || $1::text || '/' || $2::text, 0))

-- name: insert
-- Returns no row when the device has a command with this id, or the tenant has $8 commands under way. A command that
-- need not wait for another counts as sent once: the caller hands it over.
-- $9 in order, $10 seconds until it is sent again
INSERT INTO device_commands
    (command_id, tenant_id, device_id, name, arguments, expires_at, timeout_s, in_order, sends, next_send_at)
SELECT $1, $2, $3, $4, $5::text::jsonb, now() + make_interval(secs => $6), $7, $9, (NOT waits)::integer,
       CASE WHEN NOT waits AND $10 < $6 THEN now() + make_interval(secs => $10) END
FROM (SELECT $9::boolean AND EXISTS (
    SELECT FROM device_commands WHERE tenant_id = $2 AND device_id = $3 AND in_order AND finished_at IS NULL
) AS waits) AS earlier
WHERE (SELECT count(*) FROM (
    SELECT FROM device_commands WHERE tenant_id = $2 AND finished_at IS NULL LIMIT $8
) AS under_way) < $8
ON CONFLICT DO NOTHING
RETURNING command_id, tenant_id, device_id, name, arguments::text, status, created_at, expires_at, timeout_s, in_order,
          sends, sent_at, acked_at, finished_at, result::text, number, version

-- name: find
SELECT command_id, tenant_id, device_id, name, arguments::text, status, created_at, expires_at, timeout_s, in_order,
       sends, sent_at, acked_at, finished_at, result::text
FROM device_commands
WHERE tenant_id = $1 AND device_id = $2 AND command_id = $3

-- name: page
SELECT command_id, tenant_id, device_id, name, arguments::text, status, created_at, expires_at, timeout_s, in_order,
       sends, sent_at, acked_at, finished_at, result::text
FROM device_commands
WHERE tenant_id = $1 AND device_id = $2
  AND ($3::text IS NULL OR status = $3)
  AND ($4::timestamptz IS NULL OR (created_at, command_id) < ($4, $5))
ORDER BY created_at DESC, command_id DESC
LIMIT $6

-- name: take_due
-- Commands to send now, those that have waited longest first. A command of a tenant whose earlier messages still wait
-- in the outbox is left out: NATS is away, and another copy would only lengthen the queue. A command that was sent is
-- of no use when it has timed out.
-- $1 how many at most, $2 seconds to wait after the first, the second, … send; the last one holds for all others
UPDATE device_commands AS command
SET sends = command.sends + 1,
    next_send_at = CASE WHEN now() + due.wait < command.expires_at THEN now() + due.wait END
FROM (
    SELECT tenant_id, device_id, command_id,
           make_interval(secs => ($2::integer[])[least(sends + 1, cardinality($2::integer[]))]) AS wait
    FROM device_commands
    WHERE next_send_at <= now() AND expires_at > now()
      AND coalesce((
          SELECT stored_at FROM delivery_outbox
          WHERE queue = device_commands.tenant_id || '/downlinks' ORDER BY outbox_id LIMIT 1
      ) > now() - interval '5 seconds', true)
    ORDER BY next_send_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
) AS due
WHERE (command.tenant_id, command.device_id, command.command_id) = (due.tenant_id, due.device_id, due.command_id)
RETURNING command.command_id, command.tenant_id, command.device_id, name, arguments::text,
          least(expires_at, ends_at) AS expires_at, timeout_s, sends, number

-- name: release
-- Sends the first command in order of a device that has not ended, if it waits.
-- $1 tenant, $2 device, $3 seconds until it is sent again
UPDATE device_commands AS command
SET sends = 1,
    next_send_at = CASE WHEN now() + make_interval(secs => $3) < command.expires_at
                        THEN now() + make_interval(secs => $3) END
FROM (
    SELECT tenant_id, device_id, command_id, status, sends, expires_at
    FROM device_commands
    WHERE tenant_id = $1 AND device_id = $2 AND in_order AND finished_at IS NULL
    ORDER BY number
    LIMIT 1
) AS first
WHERE (command.tenant_id, command.device_id, command.command_id) = (first.tenant_id, first.device_id, first.command_id)
  AND first.status = 'queued' AND first.sends = 0 AND first.expires_at > now()
  -- Somebody else may have changed it meanwhile.
  AND command.status = 'queued' AND command.sends = 0
RETURNING command.command_id, command.tenant_id, command.device_id, name, arguments::text, command.expires_at,
          command.timeout_s, command.sends, number

-- name: release_all
-- As above for all devices.
-- $1 seconds until they are sent again
UPDATE device_commands AS command
SET sends = 1,
    next_send_at = CASE WHEN now() + make_interval(secs => $1) < command.expires_at
                        THEN now() + make_interval(secs => $1) END
FROM (
    SELECT DISTINCT ON (tenant_id, device_id) tenant_id, device_id, command_id, status, sends, expires_at
    FROM device_commands
    WHERE in_order AND finished_at IS NULL
    ORDER BY tenant_id, device_id, number
) AS first
WHERE (command.tenant_id, command.device_id, command.command_id) = (first.tenant_id, first.device_id, first.command_id)
  AND first.status = 'queued' AND first.sends = 0 AND first.expires_at > now()
  -- Somebody else may have changed it meanwhile.
  AND command.status = 'queued' AND command.sends = 0
RETURNING command.command_id, command.tenant_id, command.device_id, name, arguments::text, command.expires_at,
          command.timeout_s, command.sends, number

-- name: mark_sent
-- An answer can arrive before this statement runs: only a queued command becomes sent.
-- $1 tenants, $2 devices, $3 commands, $4 the least seconds until it is sent again
UPDATE device_commands AS command
SET status = 'sent', version = version + 1, sent_at = now(),
    next_send_at = CASE WHEN greatest(next_send_at, now() + make_interval(secs => $4)) < expires_at
                             AND next_send_at IS NOT NULL
                        THEN greatest(next_send_at, now() + make_interval(secs => $4)) END
FROM (
    -- Locked in the order of their keys: two doors may report the same commands.
    SELECT tenant_id, device_id, command_id
    FROM device_commands JOIN unnest($1::text[], $2::text[], $3::text[]) AS given (tenant_id, device_id, command_id)
        USING (tenant_id, device_id, command_id)
    WHERE status = 'queued'
    ORDER BY tenant_id, device_id, command_id
    FOR UPDATE OF device_commands
) AS queued
WHERE (command.tenant_id, command.device_id, command.command_id)
    = (queued.tenant_id, queued.device_id, queued.command_id)
RETURNING command.command_id, command.tenant_id, command.device_id, name, status, sent_at AS at, result::text, number,
          version

-- name: cancel
UPDATE device_commands
SET status = 'cancelled', version = version + 1, finished_at = now(), next_send_at = NULL
WHERE tenant_id = $1 AND device_id = $2 AND command_id = $3 AND status IN ('queued', 'sent', 'acked')
RETURNING command_id, tenant_id, device_id, name, arguments::text, status, created_at, expires_at, timeout_s, in_order,
          sends, sent_at, acked_at, finished_at, result::text, number, version, finished_at AS at

-- name: end_overdue
-- $1 how many at most, $2 only those whose time was up by then; NULL for all
UPDATE device_commands AS command
SET status = CASE command.status WHEN 'queued' THEN 'expired' ELSE 'timed_out' END, version = version + 1,
    finished_at = now(), next_send_at = NULL
FROM (
    SELECT tenant_id, device_id, command_id FROM device_commands
    WHERE ends_at <= least(now(), $2::timestamptz)
    ORDER BY ends_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
) AS overdue
WHERE (command.tenant_id, command.device_id, command.command_id)
    = (overdue.tenant_id, overdue.device_id, overdue.command_id)
RETURNING command.command_id, command.tenant_id, command.device_id, name, status, finished_at AS at, result::text,
          number, version

-- name: lock
SELECT status FROM device_commands
WHERE tenant_id = $1 AND device_id = $2 AND command_id = $3
FOR UPDATE

-- name: note_ack
-- Returns no row when the same message was stored before.
INSERT INTO device_command_acks
    (tenant_id, device_id, command_id, stored_at_ns, sequence, status, result, late_ack, received_at)
VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, $9)
ON CONFLICT DO NOTHING
RETURNING command_id

-- name: count_answers
-- $1 tenant, $2 device, $3 command, $4 how many at most
SELECT count(*) FROM (
    SELECT FROM device_command_acks WHERE tenant_id = $1 AND device_id = $2 AND command_id = $3 LIMIT $4
) AS answer

-- name: is_noted
SELECT EXISTS (
    SELECT FROM device_command_acks
    WHERE tenant_id = $1 AND device_id = $2 AND stored_at_ns = $3 AND sequence = $4
)

-- name: advance
-- Compares and sets in one statement: $6 holds the states that this answer may change.
-- $1 tenant, $2 device, $3 command, $4 status, $5 result, $7 when the answer came
UPDATE device_commands
SET status = $4, version = version + 1,
    result = coalesce($5::text::jsonb, result),
    acked_at = coalesce(acked_at, $7),
    finished_at = CASE WHEN $4 <> 'acked' THEN $7 END,
    next_send_at = NULL
WHERE tenant_id = $1 AND device_id = $2 AND command_id = $3 AND status = ANY ($6::text[])
RETURNING command_id, tenant_id, device_id, name, status, $7::timestamptz AS at, result::text, number, version,
          in_order AND finished_at IS NOT NULL AS lets_next

-- name: acks
SELECT status, result::text, late_ack, received_at
FROM device_command_acks
WHERE tenant_id = $1 AND device_id = $2 AND command_id = $3
ORDER BY received_at, sequence
LIMIT 100

-- name: open
-- A command without an answer that neither expired nor timed out, whether or not another door has sent it, and for
-- which no other has to end first.
SELECT command_id, name, arguments::text, status, least(expires_at, ends_at) AS expires_at, timeout_s
FROM device_commands AS command
WHERE tenant_id = $1 AND device_id = $2 AND finished_at IS NULL AND status IN ('queued', 'sent')
  AND command_id <> ALL ($3::text[])
  AND ends_at > now()
  AND NOT (in_order AND EXISTS (
      SELECT FROM device_commands AS earlier
      WHERE earlier.tenant_id = $1 AND earlier.device_id = $2
        AND earlier.in_order AND earlier.finished_at IS NULL AND earlier.number < command.number
  ))
ORDER BY created_at, command_id
LIMIT $4
