-- name: page
SELECT quarantine_id, event_ts, stream, sequence, stored_at, subject, topic, tenant_id, site_id, device_id,
       msg_type, reason, detail, length(payload) AS payload_bytes
FROM quarantine_events
WHERE ($1::text IS NULL OR tenant_id = $1)
  AND ($2::text IS NULL OR device_id = $2)
  AND ($3::text IS NULL OR reason = $3)
  AND ($4::timestamptz IS NULL OR event_ts >= $4)
  AND ($5::timestamptz IS NULL OR (event_ts, quarantine_id) < ($5, $6::bigint))
ORDER BY event_ts DESC, quarantine_id DESC
LIMIT $7

-- name: find
SELECT quarantine_id, event_ts, stream, sequence, stored_at, subject, topic, tenant_id, site_id, device_id,
       msg_type, reason, detail, length(payload) AS payload_bytes, payload, headers::text
FROM quarantine_events
WHERE quarantine_id = $1
