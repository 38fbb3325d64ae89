-- name: insert
-- A redelivery conflicts with its own row and adds none.
INSERT INTO quarantine_events
    (stream, sequence, stored_at, subject, topic, tenant_id, site_id, device_id, msg_type, reason, detail,
     payload, headers)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::text::jsonb)
ON CONFLICT DO NOTHING

-- name: is_kept
SELECT EXISTS (SELECT FROM quarantine_events WHERE stream = $1 AND sequence = $2 AND stored_at = $3)
