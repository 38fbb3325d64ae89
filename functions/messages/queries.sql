-- Messages: each transition is one conditional update, which also writes the transition's row.

-- name: accept
-- Stores new messages of active tenants as queued. Returns nothing for a message that exists, by its id or by the
-- tenant's idempotency key, and nothing for a tenant that may not send.
-- $1 tenants, $2 messages, $3 kinds, $4 idempotency keys, $5 fingerprints, $6 contents, $7 seconds until the row is
-- looked at in case its publication fails, $8 whether the tenant must be registered and active
WITH given AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], $8::boolean[])
        AS given (tenant_id, message_id, kind, idempotency_key, fingerprint, content, must_exist)
),
made AS (
    INSERT INTO messages (tenant_id, message_id, kind, idempotency_key, fingerprint, content, check_at)
    SELECT tenant_id, message_id, kind, idempotency_key, fingerprint, content::json, now() + make_interval(secs => $7)
    FROM given
    WHERE NOT must_exist
       OR EXISTS (SELECT FROM tenants WHERE tenants.tenant_id = given.tenant_id AND tenants.status = 'ACTIVE')
    ON CONFLICT DO NOTHING
    RETURNING tenant_id, message_id, kind, created_at
),
event AS (
    INSERT INTO message_events (tenant_id, message_id, number, kind, status, attempts, at)
    SELECT tenant_id, message_id, 1, kind, 'queued', 0, created_at FROM made
)
SELECT tenant_id, message_id, created_at FROM made;

-- name: claim
-- Begins an attempt of each message that is queued with this content. Returns what was claimed.
-- $1 tenants, $2 messages, $3 fingerprints, $4 provider accounts, $5 seconds of the lease, $6 seconds after its end at
-- which the row is looked at
WITH given AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::float8[])
        AS given (tenant_id, message_id, fingerprint, provider, lease_s)
),
claimed AS (
    UPDATE messages AS message SET
        status = 'sending',
        number = message.number + 1,
        attempts = message.attempts + 1,
        provider = given.provider,
        error_code = NULL,
        reason = NULL,
        lease_until = now() + make_interval(secs => lease_s),
        check_at = now() + make_interval(secs => lease_s + $6::float8),
        checks = 0,
        updated_at = now()
    FROM given
    WHERE message.tenant_id = given.tenant_id
      AND message.message_id = given.message_id
      AND message.status = 'queued'
      AND message.fingerprint = given.fingerprint
    RETURNING message.tenant_id, message.message_id, message.kind, message.number, message.attempts,
              message.free_attempts, message.provider, message.created_at, message.updated_at
),
attempt AS (
    INSERT INTO message_attempts (tenant_id, message_id, attempt, provider)
    SELECT tenant_id, message_id, attempts, provider FROM claimed
),
event AS (
    INSERT INTO message_events (tenant_id, message_id, number, kind, status, attempts, provider)
    SELECT tenant_id, message_id, number, kind, 'sending', attempts, provider FROM claimed
)
SELECT * FROM claimed;

-- name: find
-- A message's state. lease_left_s is how long its attempt may still be running.
SELECT kind, fingerprint, status, number, attempts, free_attempts, provider, provider_id, created_at,
       greatest(extract(epoch FROM lease_until - now()), 0)::float8 AS lease_left_s
FROM messages
WHERE tenant_id = $1 AND message_id = $2;

-- name: find_by_key
-- The message that the tenant accepted under an idempotency key.
SELECT message_id, kind, fingerprint, created_at FROM messages WHERE tenant_id = $1 AND idempotency_key = $2;

-- name: tenant_status
SELECT status FROM tenants WHERE tenant_id = $1;

-- name: advance
-- One transition of each of several messages, if their status allows it. With an attempt, only if that is the newest;
-- the attempt's row gets its result in any case. Returns the transitions that were made.
-- $1 tenants, $2 messages, $3 attempts or NULL, $4 new statuses, $5 statuses that may be left, joined by commas,
-- $6 the attempts' outcomes or NULL, $7 error codes, $8 reasons, $9 status codes, $10 the provider's ids, $11 seconds
-- until the row is looked at or NULL, $12 attempts that do not count
WITH given AS (
    SELECT *
    FROM unnest(
        $1::text[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
        $9::smallint[], $10::text[], $11::float8[], $12::integer[]
    ) AS given (
        tenant_id, message_id, attempt, status, leaves, outcome, error_code, reason, status_code, provider_id,
        check_in_s, free_attempts
    )
),
attempt AS (
    UPDATE message_attempts AS attempt SET
        finished_at = now(),
        outcome = given.outcome,
        error_code = given.error_code,
        reason = given.reason,
        status_code = given.status_code,
        provider_id = given.provider_id
    FROM given
    WHERE attempt.tenant_id = given.tenant_id
      AND attempt.message_id = given.message_id
      AND attempt.attempt = given.attempt
      AND given.outcome IS NOT NULL
),
advanced AS (
    UPDATE messages AS message SET
        status = given.status,
        number = message.number + 1,
        error_code = given.error_code,
        reason = given.reason,
        provider_id = coalesce(given.provider_id, message.provider_id),
        lease_until = NULL,
        check_at = now() + make_interval(secs => check_in_s),
        checks = 0,
        free_attempts = coalesce(given.free_attempts, message.free_attempts),
        stream_sequence = CASE WHEN given.status = 'queued' THEN NULL ELSE message.stream_sequence END,
        sent_at = CASE WHEN given.status IN ('sent', 'delivered') THEN coalesce(sent_at, now()) ELSE sent_at END,
        finished_at = CASE WHEN given.status IN ('delivered', 'failed', 'refused') THEN now() END,
        updated_at = now()
    FROM given
    WHERE message.tenant_id = given.tenant_id
      AND message.message_id = given.message_id
      AND message.status = ANY (string_to_array(given.leaves, ','))
      AND (given.attempt IS NULL OR message.attempts = given.attempt)
    RETURNING message.tenant_id, message.message_id, message.kind, message.status, message.number, message.attempts,
              message.free_attempts, message.provider, message.provider_id, message.error_code, message.created_at,
              message.updated_at
),
event AS (
    INSERT INTO message_events (
        tenant_id, message_id, number, kind, status, attempts, provider, provider_id, error_code
    )
    SELECT tenant_id, message_id, number, kind, status, attempts, provider, provider_id, error_code FROM advanced
)
SELECT * FROM advanced;

-- name: mark_announced
-- $1 tenants, $2 messages, $3 numbers of transitions that stand on their status subject
UPDATE message_events AS event SET announced_at = now()
FROM unnest($1::text[], $2::text[], $3::integer[]) AS given (tenant_id, message_id, number)
WHERE event.tenant_id = given.tenant_id
  AND event.message_id = given.message_id
  AND event.number = given.number
  AND event.announced_at IS NULL;

-- name: mark_published
-- Notes the place in the stream of messages that are still queued, and looks at them much later.
-- $1 tenants, $2 messages, $3 the numbers of the transition to queued, $4 sequences, $5 seconds until they are looked at
UPDATE messages AS message SET
    stream_sequence = given.sequence, check_at = now() + make_interval(secs => $5::float8)
FROM unnest($1::text[], $2::text[], $3::integer[], $4::bigint[]) AS given (tenant_id, message_id, number, sequence)
WHERE message.tenant_id = given.tenant_id
  AND message.message_id = given.message_id
  AND message.number = given.number
  AND message.status = 'queued';
