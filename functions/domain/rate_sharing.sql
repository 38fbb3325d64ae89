-- What processes that limit the same keys tell each other; see functions/domain/rate_sharing.py.

-- name: hear
-- Notes that a process is there; how many there are, and the time.
-- $1 group, $2 process, $3 seconds after which a silent one is gone
WITH here AS (
    INSERT INTO rate_sharers (sharing, sharer) VALUES ($1, $2)
    ON CONFLICT (sharing, sharer) DO UPDATE SET seen_at = now()
)
SELECT 1 + count(*) AS sharers, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000 AS now_ns
FROM rate_sharers
WHERE sharing = $1 AND sharer <> $2 AND seen_at > now() - make_interval(secs => $3)

-- name: settle
-- Adds what a process took to what all took. In the order of the keys, so that two processes do not deadlock.
-- $1 group, $2 keys, $3 by how much the arrival times move, $4 the process's own arrival times
INSERT INTO rate_arrivals AS known (sharing, key, arrival_ns, added_ns)
SELECT $1, used.key, used.arrival_ns, used.added_ns
FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS used (key, added_ns, arrival_ns)
ORDER BY used.key
ON CONFLICT (sharing, key) DO UPDATE
SET arrival_ns = least(greatest(known.arrival_ns + excluded.added_ns, excluded.arrival_ns), 9000000000000000000),
    added_ns = excluded.added_ns, changed_at = now()
RETURNING key, arrival_ns

-- name: forget
-- Removes what nobody has used for an hour, at most so much at a time.
WITH silent AS (DELETE FROM rate_sharers WHERE seen_at < now() - interval '1 hour')
DELETE FROM rate_arrivals
WHERE ctid = ANY (ARRAY(SELECT ctid FROM rate_arrivals WHERE changed_at < now() - interval '1 hour' LIMIT 10000))
