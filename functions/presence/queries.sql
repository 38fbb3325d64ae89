-- Presence of devices. A transaction locks the rows of its devices in the order of their keys before it reads or writes
-- their sessions, so that hosts which hear of the same devices neither deadlock nor decide from what is old.

-- name: add_devices
-- Rows of registered devices that are seen for the first time.
-- $1 tenants, $2 devices
INSERT INTO device_presence (tenant_id, device_id)
SELECT tenant_id, device_id
FROM unnest($1::text[], $2::text[]) AS wanted (tenant_id, device_id)
JOIN device_registry USING (tenant_id, device_id)
WHERE NOT EXISTS (
    SELECT FROM device_presence AS known
    WHERE known.tenant_id = wanted.tenant_id AND known.device_id = wanted.device_id
)
ORDER BY tenant_id, device_id
ON CONFLICT DO NOTHING

-- name: lock
-- $1 tenants, $2 devices
SELECT known.tenant_id::text, known.device_id::text, known.status, known.changed_at, known.transitions,
       known.last_seen_at, known.sessionless_at, known.session_ended_at, known.check_at, registered.presence_timeout_s
FROM unnest($1::text[], $2::text[]) AS wanted (tenant_id, device_id)
JOIN device_presence AS known USING (tenant_id, device_id)
JOIN device_registry AS registered USING (tenant_id, device_id)
ORDER BY known.tenant_id, known.device_id
FOR NO KEY UPDATE OF known

-- name: open_sessions
-- Opens sessions that are not known, and returns their devices. One that has ended stays so: this host may be slower than
-- the one that heard it.
-- $1 servers, $2 connections, $3 tenants, $4 devices, $5 begun
INSERT INTO device_sessions AS known (server_id, connection_id, tenant_id, device_id, started_at)
SELECT server_id, connection_id, tenant_id, device_id, started_at
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::timestamptz[])
    AS session (server_id, connection_id, tenant_id, device_id, started_at)
JOIN device_presence USING (tenant_id, device_id)
ORDER BY server_id, connection_id
ON CONFLICT DO NOTHING
RETURNING tenant_id::text, device_id::text

-- name: reopen_sessions
-- A session that counts as ended is open if its server lists it later than that: the server did not answer for a time.
-- $1 servers, $2 connections, $3 known to be open
UPDATE device_sessions AS known SET ended_at = NULL
FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS session (server_id, connection_id, known_at)
WHERE known.server_id = session.server_id AND known.connection_id = session.connection_id
  AND known.ended_at < session.known_at
RETURNING known.tenant_id::text, known.device_id::text

-- name: end_sessions
-- Ends open sessions, and returns their devices. One that is not known is noted as ended: its beginning may yet come from a
-- host that is slower. Not all by one INSERT with a conflict: that costs twice as much, and nearly all are known.
-- $1 servers, $2 connections, $3 tenants, $4 devices, $5 begun, $6 ended
WITH session AS (
    SELECT *
    FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[])
        AS session (server_id, connection_id, tenant_id, device_id, started_at, ended_at)
),
ended AS (
    UPDATE device_sessions AS known SET ended_at = session.ended_at
    FROM session
    WHERE known.server_id = session.server_id AND known.connection_id = session.connection_id AND known.ended_at IS NULL
    RETURNING known.tenant_id, known.device_id
),
noted AS (
    INSERT INTO device_sessions AS known (server_id, connection_id, tenant_id, device_id, started_at, ended_at)
    SELECT server_id, connection_id, tenant_id, device_id, started_at, ended_at
    FROM session JOIN device_presence USING (tenant_id, device_id)
    WHERE NOT EXISTS (
        SELECT FROM device_sessions AS other
        WHERE other.server_id = session.server_id AND other.connection_id = session.connection_id
    )
    ORDER BY server_id, connection_id
    ON CONFLICT DO NOTHING
    RETURNING known.tenant_id, known.device_id
)
SELECT tenant_id::text, device_id::text FROM ended
UNION ALL
SELECT tenant_id::text, device_id::text FROM noted

-- name: find_open
-- $1 tenants, $2 devices
SELECT session.tenant_id::text, session.device_id::text, max(session.started_at) AS open_since
FROM unnest($1::text[], $2::text[]) AS wanted (tenant_id, device_id)
JOIN device_sessions AS session USING (tenant_id, device_id)
WHERE session.ended_at IS NULL
GROUP BY 1, 2

-- name: find_newest
-- When devices were last seen, to the newest row of telemetry.
-- $1 tenants, $2 devices, $3 seen
SELECT tenant_id, device_id, seen_of(tenant_id, device_id, seen_at) AS time
FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS wanted (tenant_id, device_id, seen_at)

-- name: save
-- A row with a reason is a change of status, which takes the place of the one that many changes ago.
-- $1 tenants, $2 devices, $3 statuses, $4 reasons, $5 changed, $6 transitions, $7 seen, $8 session ended, $9 check,
-- $10 seen outside of a session
WITH new AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::bigint[], $7::timestamptz[],
                $8::timestamptz[], $9::timestamptz[], $10::timestamptz[])
        AS new (tenant_id, device_id, status, reason, changed_at, transitions, last_seen_at, session_ended_at, check_at,
                sessionless_at)
),
saved AS (
    UPDATE device_presence AS known
    SET status = new.status, reason = coalesce(new.reason, known.reason), changed_at = new.changed_at,
        transitions = new.transitions, last_seen_at = new.last_seen_at, session_ended_at = new.session_ended_at,
        check_at = new.check_at, sessionless_at = new.sessionless_at
    FROM new
    WHERE known.tenant_id = new.tenant_id AND known.device_id = new.device_id
)
INSERT INTO device_presence_events (tenant_id, device_id, place, number, status, reason, at, last_seen_at)
SELECT tenant_id, device_id, transitions % 32, transitions, status, reason, changed_at, last_seen_at
FROM new
WHERE reason IS NOT NULL
ON CONFLICT (tenant_id, device_id, place) DO UPDATE
SET number = excluded.number, status = excluded.status, reason = excluded.reason, at = excluded.at,
    last_seen_at = excluded.last_seen_at

-- name: tell_ended
-- $1 channel, $2 texts
SELECT pg_notify($1, text) FROM unnest($2::text[]) AS each (text)

-- name: take_activity
-- $1 how many rows at most, $2 after how many devices no further row is taken
WITH waiting AS (
    SELECT ctid AS place, cardinality(device_ids) AS devices FROM device_activity LIMIT $1 FOR UPDATE SKIP LOCKED
),
counted AS (
    SELECT place, sum(devices) OVER (ORDER BY place) - devices AS before FROM waiting
),
taken AS (
    DELETE FROM device_activity
    WHERE ctid = ANY (ARRAY(SELECT place FROM counted WHERE before < $2))
    RETURNING tenant_id, device_ids, seen_at, sessionless
)
SELECT tenant_id, device_id, max(at) AS seen_at, max(at) FILTER (WHERE is_sessionless) AS sessionless_at
FROM taken CROSS JOIN unnest(device_ids, seen_at, sessionless) AS device (device_id, at, is_sessionless)
GROUP BY tenant_id, device_id
ORDER BY tenant_id, device_id

-- name: touch
-- Notes that devices which are online were seen again; returns the others. In the order of the key, see above.
-- $1 tenants, $2 devices, $3 seen, $4 seen outside of a session
WITH seen AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[])
        AS seen (tenant_id, device_id, at, sessionless_at)
),
locked AS (
    SELECT known.tenant_id, known.device_id, known.status, seen.at, seen.sessionless_at
    FROM seen JOIN device_presence AS known USING (tenant_id, device_id)
    ORDER BY known.tenant_id, known.device_id
    FOR NO KEY UPDATE OF known
),
touched AS (
    UPDATE device_presence AS known
    SET last_seen_at = greatest(known.last_seen_at, least(locked.at, clock_timestamp())),
        -- LEAST leaves out NULL.
        sessionless_at = greatest(known.sessionless_at, CASE WHEN locked.sessionless_at IS NOT NULL
            THEN least(locked.sessionless_at, clock_timestamp()) END)
    FROM locked
    WHERE known.tenant_id = locked.tenant_id AND known.device_id = locked.device_id AND locked.status = 'online'
)
SELECT tenant_id, device_id, at, sessionless_at
FROM seen
WHERE NOT EXISTS (
    SELECT FROM locked
    WHERE locked.tenant_id = seen.tenant_id AND locked.device_id = seen.device_id AND locked.status = 'online'
)

-- name: is_due
-- $1 up to when
SELECT EXISTS (SELECT FROM device_presence WHERE check_at <= $1)

-- name: take_due
-- $1 how many at most, $2 up to when
SELECT tenant_id::text, device_id::text
FROM device_presence
WHERE check_at <= $2
ORDER BY check_at
LIMIT $1
FOR NO KEY UPDATE SKIP LOCKED

-- name: find_missing
-- The open sessions of a server with ids of a range that are none of its listed connections.
-- $1 server, $2 above this id, $3 up to this one (NULL: no end), $4 noted before, $5 listed ids
SELECT server_id, connection_id, tenant_id::text, device_id::text, started_at
FROM device_sessions AS session
WHERE server_id = $1 AND connection_id > $2 AND connection_id <= coalesce($3, 9223372036854775807)
  AND ended_at IS NULL AND noted_at < $4
  AND NOT EXISTS (SELECT FROM unnest($5::bigint[]) AS listed (id) WHERE listed.id = session.connection_id)

-- name: find_unknown
-- Which of a server's connections are not known as open sessions.
-- $1 server, $2 connections
SELECT connection_id
FROM unnest($2::bigint[]) AS listed (connection_id)
WHERE NOT EXISTS (
    SELECT FROM device_sessions AS known
    WHERE known.server_id = $1 AND known.connection_id = listed.connection_id AND known.ended_at IS NULL
)

-- name: find_servers
-- The servers of open sessions, by steps from one to the next.
WITH RECURSIVE server AS (
    (SELECT server_id FROM device_sessions ORDER BY server_id LIMIT 1)
    UNION ALL
    SELECT next.server_id
    FROM server CROSS JOIN LATERAL (
        SELECT server_id FROM device_sessions
        WHERE device_sessions.server_id > server.server_id
        ORDER BY server_id
        LIMIT 1
    ) AS next
)
SELECT server_id FROM server
WHERE EXISTS (
    SELECT FROM device_sessions AS session WHERE session.server_id = server.server_id AND session.ended_at IS NULL
)

-- name: hear_servers
-- Notes that servers answer; returns those whose sessions were ended for their silence.
-- $1 servers
WITH forgotten AS (
    DELETE FROM presence_servers WHERE heard_at < clock_timestamp() - interval '1 day' AND server_id <> ALL ($1)
),
back AS (
    SELECT server_id FROM presence_servers WHERE server_id = ANY ($1) AND is_lost
),
heard AS (
    INSERT INTO presence_servers AS known (server_id)
    SELECT server_id FROM unnest($1::text[]) AS server (server_id) ORDER BY server_id
    ON CONFLICT (server_id) DO UPDATE SET heard_at = clock_timestamp(), is_lost = false
    WHERE known.heard_at < clock_timestamp() - interval '1 second' OR known.is_lost
)
SELECT server_id FROM back

-- name: find_heard
-- Servers that some host has heard.
-- $1 since
SELECT server_id, heard_at FROM presence_servers WHERE heard_at > $1

-- name: lose_server
-- $1 server
INSERT INTO presence_servers (server_id, is_lost, heard_at) VALUES ($1, true, clock_timestamp() - interval '1 minute')
ON CONFLICT (server_id) DO UPDATE SET is_lost = true

-- name: find_sessions
-- $1 server, $2 how many at most
SELECT server_id, connection_id, tenant_id::text, device_id::text, started_at
FROM device_sessions
WHERE server_id = $1 AND ended_at IS NULL
ORDER BY connection_id
LIMIT $2

-- name: forget_sessions
-- $1 how many at most
DELETE FROM device_sessions
WHERE (server_id, connection_id) IN (
    SELECT server_id, connection_id FROM device_sessions
    WHERE ended_at < now() - interval '10 minutes'
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)

-- name: renew_watch
-- $1 timeout in seconds
INSERT INTO presence_watch AS known (watched_until, timeout_s) VALUES (now() + interval '1 day', $1)
ON CONFLICT (only_row) DO UPDATE SET watched_until = excluded.watched_until, timeout_s = excluded.timeout_s
WHERE known.watched_until < now() + interval '23 hours' OR known.timeout_s <> excluded.timeout_s

-- name: claim_comparison
-- Begins a comparison, unless one that began since $1 is done, or another host is at one; returns when it began.
-- $1 since
UPDATE presence_watch SET comparing_since = clock_timestamp()
WHERE (compared_at IS NULL OR compared_at < $1)
  AND (comparing_since IS NULL OR comparing_since < $1 OR comparing_since < clock_timestamp() - interval '20 seconds')
RETURNING comparing_since

-- name: end_comparison
-- $1 when it began
UPDATE presence_watch SET compared_at = greatest(compared_at, $1)

-- name: is_compared
-- $1 since
SELECT coalesce(compared_at >= $1, false) FROM presence_watch

-- name: clock
SELECT clock_timestamp()
