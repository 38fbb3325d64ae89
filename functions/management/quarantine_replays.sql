-- name: find
-- What became of the copies is read from the messages, as long as quarantine keeps them.
-- $1 replay
SELECT replay.*, outcome.*
FROM quarantine_replays AS replay
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE event.status = 'replayed') AS accepted,
           count(*) FILTER (WHERE event.status = 'quarantined') AS refused,
           count(*) FILTER (WHERE event.status = 'replaying') AS under_way
    FROM quarantine_events AS event
    WHERE event.replay_id = replay.replay_id
) AS outcome
WHERE replay.replay_id = $1

-- name: page
-- $1, $2 time and replay after which to begin, $3 how many at most
SELECT replay.*, outcome.*
FROM (
    SELECT * FROM quarantine_replays
    WHERE $1::timestamptz IS NULL OR (created_at, replay_id) < ($1, $2::uuid)
    ORDER BY created_at DESC, replay_id DESC
    LIMIT $3
) AS replay
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE event.status = 'replayed') AS accepted,
           count(*) FILTER (WHERE event.status = 'quarantined') AS refused,
           count(*) FILTER (WHERE event.status = 'replaying') AS under_way
    FROM quarantine_events AS event
    WHERE event.replay_id = replay.replay_id
) AS outcome
ORDER BY created_at DESC, replay_id DESC

-- name: lock
SELECT pg_advisory_xact_lock(hashtext('quarantine_replays'))

-- name: count_running
SELECT count(*) FROM quarantine_replays WHERE status = 'running'

-- name: message
-- $1 message
SELECT status, is_judged(subject) AS has_function
FROM quarantine_events
WHERE quarantine_id = $1

-- name: insert
-- $1 replay, $2 message or NULL, $3 tenant, $4 device, $5 reason, $6 since, $7 until, $8 rate
INSERT INTO quarantine_replays (replay_id, quarantine_id, tenant_id, device_id, reason, since, until, rate_per_s, found)
SELECT $1, $2::bigint, $3::text, $4::text, $5::text, $6::timestamptz, $7::timestamptz, $8, count(*)
FROM (
    SELECT FROM quarantine_events
    WHERE status = 'quarantined'
      AND ($2::bigint IS NULL OR quarantine_id = $2)
      AND ($3::text IS NULL OR tenant_id = $3)
      AND ($4::text IS NULL OR device_id = $4)
      AND ($5::text IS NULL OR reason = $5)
      AND ($6::timestamptz IS NULL OR event_ts >= $6)
      AND event_ts < $7::timestamptz
      AND is_judged(subject)
    LIMIT 100000
) AS fitting

-- name: cancel
-- $1 replay
UPDATE quarantine_replays SET status = 'cancelled', finished_at = now() WHERE replay_id = $1 AND status = 'running'
RETURNING replay_id

-- name: give_back
-- Copies that are under way become duplicates.
-- $1 replay
UPDATE quarantine_events AS event SET status = 'quarantined'
FROM (
    SELECT quarantine_id FROM quarantine_events
    WHERE replay_id = $1 AND status = 'replaying'
    -- as whoever judges the copies locks them
    ORDER BY quarantine_id
    FOR UPDATE
) AS locked
WHERE event.quarantine_id = locked.quarantine_id
