-- name: insert
-- Keeps refused messages as far as there is room, and counts all of them. A redelivery finds its own row and adds none.
-- $1 to $13 the columns, $14 the tenant in each subject, $15 the reason under which it is counted
WITH asked AS (
    SELECT *
    FROM unnest($1::text[], $2::bigint[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::text[], $11::text[], $12::bytea[], $13::text[], $14::text[],
                $15::text[])
        WITH ORDINALITY AS message (stream, sequence, stored_at, subject, topic, tenant_id, site_id, device_id, msg_type,
                                    reason, detail, payload, headers, sender, kind, place)
),
found AS (
    SELECT asked.*, octet_length(asked.payload) + octet_length(asked.headers) AS size_bytes,
           coalesce(tenants.tenant_id, '') AS counted_for,
           known.quarantine_id IS NOT NULL OR unkept.stream IS NOT NULL
           OR row_number() OVER (PARTITION BY asked.stream, asked.sequence, asked.stored_at ORDER BY place) > 1
               AS is_repeated
    FROM asked
    LEFT JOIN tenants ON tenants.tenant_id = asked.sender
    LEFT JOIN quarantine_events AS known
        ON known.stream = asked.stream AND known.sequence = asked.sequence AND known.stored_at = asked.stored_at
    LEFT JOIN LATERAL (
        SELECT stream FROM quarantine_unkept
        WHERE sequences @> asked.sequence AND stream = asked.stream
          AND asked.stored_at BETWEEN first_stored_at AND last_stored_at
        LIMIT 1
    ) AS unkept ON true
),
bounded AS (
    SELECT found.*,
           CASE counted_for WHEN '' THEN unknown_messages ELSE tenant_messages END AS max_messages,
           CASE counted_for WHEN '' THEN unknown_bytes ELSE tenant_bytes END AS max_bytes,
           NOT is_repeated AND (counted_for <> '' OR size_bytes <= unknown_message_bytes) AS may_stay
    -- without limits nothing is kept, but counted
    FROM found LEFT JOIN quarantine_limits ON true
),
used AS (
    SELECT tenant_id, sum(messages) AS messages, sum(size_bytes) AS size_bytes
    FROM (SELECT * FROM quarantine_usage UNION ALL SELECT * FROM quarantine_usage_changes) AS part
    WHERE tenant_id IN (SELECT counted_for FROM found)
    GROUP BY tenant_id
),
judged AS (
    SELECT bounded.*,
           may_stay
           AND coalesce(used.messages, 0) + count(*) FILTER (WHERE may_stay) OVER earlier <= max_messages
           AND coalesce(used.size_bytes, 0) + sum(bounded.size_bytes) FILTER (WHERE may_stay) OVER earlier <= max_bytes
               AS is_kept
    FROM bounded LEFT JOIN used ON used.tenant_id = bounded.counted_for
    WINDOW earlier AS (PARTITION BY counted_for ORDER BY place)
),
kept AS (
    INSERT INTO quarantine_events
        (stream, sequence, stored_at, subject, topic, tenant_id, site_id, device_id, msg_type, reason, detail, payload,
         headers, counted_for, size_bytes)
    SELECT stream, sequence, stored_at, subject, topic, tenant_id, site_id, device_id, msg_type, reason, detail, payload,
           headers::jsonb, counted_for, size_bytes
    FROM judged
    WHERE is_kept
    ORDER BY stream, sequence, stored_at
    ON CONFLICT DO NOTHING
    RETURNING stream, sequence, stored_at
),
ended AS (
    SELECT judged.stream, judged.sequence, judged.stored_at, judged.counted_for, judged.kind AS reason,
           CASE WHEN judged.is_repeated OR judged.is_kept AND kept.stream IS NULL THEN 'duplicate'
                WHEN judged.is_kept THEN 'quarantined' ELSE 'refused' END AS outcome
    FROM judged
    LEFT JOIN kept
        ON judged.is_kept AND kept.stream = judged.stream AND kept.sequence = judged.sequence
        AND kept.stored_at = judged.stored_at
),
-- The places of what is not kept, as runs without a gap, so that a redelivery is known. A sender that leaves many gaps is
-- not remembered in full.
unkept AS (
    INSERT INTO quarantine_unkept (stream, sequences, first_stored_at, last_stored_at)
    SELECT stream, int8range(min(sequence), max(sequence), '[]'), min(stored_at), max(stored_at)
    FROM (
        SELECT stream, sequence, stored_at,
               sequence - row_number() OVER (PARTITION BY stream ORDER BY sequence) AS run
        FROM ended
        WHERE outcome = 'refused'
    ) AS numbered
    GROUP BY stream, run
    ORDER BY count(*) DESC
    LIMIT 20
),
counted_by_minute AS (
    INSERT INTO quarantine_minutes (minute, tenant_id, reason, quarantined, refused)
    SELECT date_trunc('minute', now()), counted_for, reason, count(*) FILTER (WHERE outcome = 'quarantined'),
           count(*) FILTER (WHERE outcome = 'refused')
    FROM ended
    WHERE outcome <> 'duplicate'
    GROUP BY counted_for, reason
),
counted AS (
    INSERT INTO message_count_changes (tenant_id, received, written, quarantined, refused, duplicate)
    SELECT counted_for, count(*), 0, count(*) FILTER (WHERE outcome = 'quarantined'),
           count(*) FILTER (WHERE outcome = 'refused'), count(*) FILTER (WHERE outcome = 'duplicate')
    FROM ended
    GROUP BY counted_for
)
SELECT counted_for, count(*) AS unkept FROM ended WHERE outcome = 'refused' GROUP BY counted_for

-- name: is_refused
SELECT EXISTS (SELECT FROM quarantine_events WHERE stream = $1 AND sequence = $2 AND stored_at = $3)
    OR EXISTS (
        SELECT FROM quarantine_unkept
        WHERE sequences @> $2::bigint AND stream = $1 AND $3 BETWEEN first_stored_at AND last_stored_at
    )
