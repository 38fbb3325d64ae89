-- name: get
SELECT message_id, tenant_id, kind, status, attempts, provider, provider_id, error_code, reason, created_at,
       updated_at, sent_at, finished_at, content::text AS content
FROM messages
WHERE tenant_id = $1 AND message_id = $2

-- name: given_up
-- The attempts of a message that was given up before $4, with this content.
-- $1 tenant, $2 message, $3 fingerprint, $4 when
SELECT attempts FROM messages
WHERE tenant_id = $1 AND message_id = $2 AND fingerprint = $3 AND status IN ('failed', 'refused') AND updated_at <= $4

-- name: content
SELECT content::text FROM messages WHERE tenant_id = $1 AND message_id = $2

-- name: attempts
SELECT attempt, provider, started_at, finished_at, outcome, status_code, error_code, reason, provider_id
FROM (
    SELECT * FROM message_attempts WHERE tenant_id = $1 AND message_id = $2 ORDER BY attempt DESC LIMIT 100
) AS newest
ORDER BY attempt

-- name: transitions
SELECT number, status, error_code, at
FROM (
    SELECT * FROM message_events WHERE tenant_id = $1 AND message_id = $2 ORDER BY number DESC LIMIT 100
) AS newest
ORDER BY number

-- name: recipients
SELECT address, outcome, status_code, reason, at
FROM message_recipients
WHERE tenant_id = $1 AND message_id = $2
ORDER BY address

-- name: page
SELECT message_id, tenant_id, kind, status, attempts, provider, provider_id, error_code, reason, created_at,
       updated_at, sent_at, finished_at
FROM messages
WHERE tenant_id = $1
  AND ($2::text IS NULL OR kind = $2)
  AND ($3::text IS NULL OR status = $3)
  AND ($4::timestamptz IS NULL OR created_at >= $4)
  AND ($5::timestamptz IS NULL OR (created_at, message_id) < ($5, $6))
ORDER BY created_at DESC, message_id DESC
LIMIT $7

-- name: page_of_unknown
SELECT message_id, tenant_id, kind, status, attempts, provider, provider_id, error_code, reason, created_at,
       updated_at, sent_at, finished_at, check_at AS next_look_up_at
FROM messages
WHERE status = 'unknown'
  AND ($1::text IS NULL OR kind = $1)
  AND ($2::timestamptz IS NULL OR (updated_at, tenant_id, message_id) > ($2, $3, $4))
ORDER BY updated_at, tenant_id, message_id
LIMIT $5
