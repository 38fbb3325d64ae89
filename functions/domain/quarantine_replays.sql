-- Copies of messages from quarantine, as the functions see that take them.

-- name: find
-- A copy belongs to a message of the same bytes on the same subject: whoever can send that needs no replay.
-- $1 messages in quarantine, $2 replays, $3 subjects, $4 payloads
SELECT asked.place, event.quarantine_id, asked.replay_id, event.stream, event.sequence, event.stored_at, event.counted_for,
       event.status = 'replaying' AND event.replay_id = asked.replay_id AS is_open
FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::bytea[])
    WITH ORDINALITY AS asked (quarantine_id, replay_id, subject, payload, place)
JOIN quarantine_events AS event
    ON event.quarantine_id = asked.quarantine_id AND event.subject = asked.subject AND event.payload = asked.payload

-- name: lock
-- Those copies whose message still waits for them; until the transaction ends nobody else judges another copy.
-- $1 messages in quarantine, $2 replays
SELECT quarantine_id
FROM quarantine_events AS event
JOIN unnest($1::bigint[], $2::uuid[]) AS asked (quarantine_id, replay_id) USING (quarantine_id, replay_id)
WHERE event.status = 'replaying'
ORDER BY quarantine_id
FOR UPDATE OF event

-- name: accept
-- The messages leave quarantine: they count as what became of their copies.
-- $1 messages in quarantine, $2 replays
WITH accepted AS (
    UPDATE quarantine_events AS event SET status = 'replayed', replayed_at = now()
    FROM (SELECT DISTINCT * FROM unnest($1::bigint[], $2::uuid[]) AS asked (quarantine_id, replay_id)) AS copy
    WHERE event.quarantine_id = copy.quarantine_id AND event.replay_id = copy.replay_id AND event.status = 'replaying'
    RETURNING event.counted_for
)
INSERT INTO message_count_changes (tenant_id, received, written, quarantined, refused, duplicate)
SELECT counted_for, -count(*), 0, -count(*), 0, 0 FROM accepted GROUP BY counted_for

-- name: refuse_again
-- $1 messages in quarantine, $2 replays, $3 reasons, $4 details
UPDATE quarantine_events AS event
SET status = 'quarantined', replayed_at = now(), reason = again.reason, detail = again.detail
FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[]) AS again (quarantine_id, replay_id, reason, detail)
WHERE event.quarantine_id = again.quarantine_id AND event.replay_id = again.replay_id AND event.status = 'replaying'
RETURNING event.quarantine_id
