-- Messages at which it is time to look, whatever their queues do.

-- name: due
-- $1 kind, $2 statuses, $3 how many at most
SELECT message.tenant_id, message.message_id, message.kind, message.status, message.number, message.attempts,
       message.free_attempts, message.checks, message.provider, message.provider_id, message.stream_sequence,
       message.created_at, message.updated_at, attempt.started_at, message.content::text,
       coalesce(message.content ->> 'to', message.content ->> 'url', '')
FROM messages AS message
LEFT JOIN message_attempts AS attempt
    ON attempt.tenant_id = message.tenant_id
   AND attempt.message_id = message.message_id
   AND attempt.attempt = message.attempts
WHERE message.kind = $1 AND message.status = ANY ($2::text[]) AND message.check_at <= now()
ORDER BY message.check_at
LIMIT $3;

-- name: look_again
-- Only while the message is in the same transition. $4 seconds, NULL for never
UPDATE messages SET check_at = now() + make_interval(secs => $4::float8), checks = checks + 1
WHERE tenant_id = $1 AND message_id = $2 AND number = $3;

-- name: postpone
-- Notes why a queued message waits, and that nobody shall look at it before its time.
-- $1 tenant, $2 message, $3 seconds, $4 code, $5 reason
UPDATE messages SET
    check_at = now() + make_interval(secs => $3::float8), error_code = $4, reason = $5
WHERE tenant_id = $1 AND message_id = $2 AND status = 'queued'
RETURNING 1;

-- name: known_provider_ids
SELECT provider_id FROM messages WHERE provider_id = ANY ($1::text[]);

-- name: count_rivals
-- Other messages with this recipient and text whose result nobody knows: each may be the one that the provider lists.
SELECT count(*) FROM messages
WHERE kind = $1
  AND status IN ('sending', 'unknown')
  AND (tenant_id, message_id) <> ($2, $3)
  AND content ->> 'to' = $4
  AND content ->> 'body' = $5;

-- name: unannounced
-- Transitions that are not known to stand on their status subject. $1 seconds, $2 how many at most
SELECT event.tenant_id, event.message_id, event.kind, event.status, event.number, event.attempts, 0 AS free_attempts,
       event.provider, event.provider_id, event.error_code, event.at AS created_at, event.at
FROM message_events AS event
WHERE event.announced_at IS NULL AND event.at < now() - make_interval(secs => $1::float8)
ORDER BY event.at
LIMIT $2;

-- name: forget_old
-- Removes finished messages that have not changed for $1, with their attempts and transitions; $2 at a time, so that
-- no statement holds its locks for long.
DELETE FROM messages
WHERE (tenant_id, message_id) IN (
    SELECT tenant_id, message_id FROM messages
    WHERE updated_at < now() - $1::interval AND status NOT IN ('queued', 'sending', 'unknown')
    LIMIT $2
);

-- name: count_waiting
-- How many messages of a tenant wait to be sent, counted up to $2.
SELECT count(*) FROM (
    SELECT FROM messages WHERE tenant_id = $1 AND status IN ('queued', 'sending') LIMIT $2
) AS waiting;
