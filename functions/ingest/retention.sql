-- Removes what is too old of refused messages and their counters. Several hosts may run it: each skips what another removes.

-- name: set_limits
-- $1 to $5 in the order of the columns
UPDATE quarantine_limits
SET tenant_messages = $1, tenant_bytes = $2, unknown_messages = $3, unknown_bytes = $4, unknown_message_bytes = $5
WHERE (tenant_messages, tenant_bytes, unknown_messages, unknown_bytes, unknown_message_bytes) <> ($1, $2, $3, $4, $5)

-- name: wait_briefly
SET LOCAL lock_timeout = '5s'

-- name: forget_events
-- A copy that a replay has sent is known by its message: it stays for longer than a stream keeps the copy (7 days).
-- $1 the greatest age, $2 how many at most
DELETE FROM quarantine_events
WHERE quarantine_id IN (
    SELECT quarantine_id FROM quarantine_events
    WHERE event_ts < now() - $1::interval
      AND (replayed_at IS NULL OR replayed_at < now() - interval '8 days')
    ORDER BY event_ts
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)

-- name: forget_unknown
-- $1 the greatest age, $2 how many at most
DELETE FROM quarantine_events
WHERE quarantine_id IN (
    SELECT quarantine_id FROM quarantine_events
    WHERE counted_for = '' AND event_ts < now() - $1::interval
      AND (replayed_at IS NULL OR replayed_at < now() - interval '8 days')
    ORDER BY event_ts
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)

-- name: forget_minutes
-- $1 the greatest age, $2 how many at most
DELETE FROM quarantine_minutes
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM quarantine_minutes
    WHERE minute < now() - $1::interval
    ORDER BY minute
    LIMIT $2
    FOR UPDATE SKIP LOCKED
))

-- name: forget_replays
-- $1 the greatest age, $2 how many at most
DELETE FROM quarantine_replays
WHERE replay_id IN (
    SELECT replay_id FROM quarantine_replays
    WHERE finished_at < now() - $1::interval
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)

-- name: forget_unkept
-- $1 the greatest age, $2 how many at most
DELETE FROM quarantine_unkept
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM quarantine_unkept
    WHERE counted_at < now() - $1::interval
    ORDER BY counted_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
))

-- name: find_surplus_age
-- How old the oldest place is that stays when so many stay; NULL when there are fewer.
-- $1 how many stay
SELECT now() - counted_at FROM quarantine_unkept ORDER BY counted_at DESC OFFSET $1 LIMIT 1
