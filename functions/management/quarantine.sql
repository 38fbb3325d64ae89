-- name: page
SELECT quarantine_id, event_ts, stream, sequence, stored_at, subject, topic, tenant_id, site_id, device_id,
       msg_type, reason, detail, length(payload) AS payload_bytes, status, replay_id, replayed_at, replays
FROM quarantine_events
WHERE ($1::text IS NULL OR tenant_id = $1)
  AND ($2::text IS NULL OR device_id = $2)
  AND ($3::text IS NULL OR reason = $3)
  AND ($4::text IS NULL OR status = $4)
  AND ($5::timestamptz IS NULL OR event_ts >= $5)
  AND ($6::timestamptz IS NULL OR (event_ts, quarantine_id) < ($6, $7::bigint))
ORDER BY event_ts DESC, quarantine_id DESC
LIMIT $8

-- name: find
SELECT quarantine_id, event_ts, stream, sequence, stored_at, subject, topic, tenant_id, site_id, device_id,
       msg_type, reason, detail, length(payload) AS payload_bytes, status, replay_id, replayed_at, replays,
       payload, headers::text
FROM quarantine_events
WHERE quarantine_id = $1

-- name: minutes
-- $1 tenant, $2 reason, $3 since, $4 until, $5, $6, $7 minute, tenant and reason after which to begin, $8 how many at most
SELECT minute, tenant_id, reason, sum(quarantined)::bigint AS quarantined, sum(refused)::bigint AS refused
FROM quarantine_minutes
WHERE ($1::text IS NULL OR tenant_id = $1)
  AND ($2::text IS NULL OR reason = $2)
  AND ($3::timestamptz IS NULL OR minute >= $3)
  AND ($4::timestamptz IS NULL OR minute < $4)
  AND ($5::timestamptz IS NULL OR (minute, tenant_id, reason) < ($5, $6::text, $7::text))
GROUP BY minute, tenant_id, reason
ORDER BY minute DESC, tenant_id DESC, reason DESC
LIMIT $8
