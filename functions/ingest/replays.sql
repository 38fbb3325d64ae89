-- Replays of messages from quarantine.

-- name: begin
-- Takes the replays that are due. One that a host began and did not end is due again after a minute.
-- $1 how many at most
UPDATE quarantine_replays AS replay SET run_at = now() + interval '1 minute'
FROM (
    SELECT replay_id FROM quarantine_replays
    WHERE status = 'running' AND run_at <= now()
    ORDER BY run_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
) AS due
WHERE replay.replay_id = due.replay_id
RETURNING replay.replay_id, quarantine_id, tenant_id, device_id, reason, since, until, rate_per_s, cursor

-- name: claim
-- Takes the next messages, and again those that this replay took before its host died. Not those that it took and that
-- were refused again. A copy that another replay sent an hour ago is given up: from now on it is a duplicate.
-- $1 replay, $2 message or NULL, $3 tenant, $4 device, $5 reason, $6 since, $7 until, $8 the last message, $9 how many
-- at most, $10 how many bytes at most
WITH fitting AS (
    SELECT quarantine_id, size_bytes
    FROM quarantine_events
    WHERE quarantine_id > $8
      AND ($2::bigint IS NULL OR quarantine_id = $2)
      AND ($3::text IS NULL OR tenant_id = $3)
      AND ($4::text IS NULL OR device_id = $4)
      AND ($5::text IS NULL OR reason = $5)
      AND ($6::timestamptz IS NULL OR event_ts >= $6)
      AND event_ts < $7
      AND is_judged(subject)
      AND (status = 'quarantined' AND replay_id IS DISTINCT FROM $1::uuid
           OR status = 'replaying' AND (replay_id = $1::uuid OR replayed_at < now() - interval '1 hour'))
    ORDER BY quarantine_id
    LIMIT $9
),
next AS (
    SELECT event.quarantine_id
    FROM quarantine_events AS event
    JOIN (
        SELECT quarantine_id, sum(size_bytes) OVER (ORDER BY quarantine_id) - size_bytes AS bytes_before FROM fitting
    ) AS sized USING (quarantine_id)
    WHERE bytes_before < $10 AND event.status <> 'replayed'
    ORDER BY event.quarantine_id
    FOR UPDATE OF event
)
UPDATE quarantine_events AS event
SET status = 'replaying', replay_id = $1::uuid, replayed_at = now(),
    replays = replays + CASE WHEN event.replay_id = $1::uuid THEN 0 ELSE 1 END
FROM next
WHERE event.quarantine_id = next.quarantine_id
RETURNING event.quarantine_id, event.subject, event.payload

-- name: give_back
-- $1 messages that cannot be sent, $2 replay
UPDATE quarantine_events AS event SET status = 'quarantined'
FROM (
    SELECT quarantine_id FROM quarantine_events
    WHERE quarantine_id = ANY ($1::bigint[]) AND replay_id = $2::uuid AND status = 'replaying'
    -- as whoever judges the copies locks them
    ORDER BY quarantine_id
    FOR UPDATE
) AS locked
WHERE event.quarantine_id = locked.quarantine_id

-- name: note
-- $1 replay, $2 the last message, $3 how many were sent, $4 how many cannot be sent
UPDATE quarantine_replays SET cursor = $2, sent = sent + $3, unsendable = unsendable + $4, run_at = now()
WHERE replay_id = $1 AND status = 'running' AND cursor < $2

-- name: end
-- $1 replay
UPDATE quarantine_replays SET status = 'done', finished_at = now() WHERE replay_id = $1 AND status = 'running'
