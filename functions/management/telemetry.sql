-- name: latest
SELECT time, site_id, msg_type, seq, metrics::text, device_time
FROM telemetry
WHERE tenant_id = $1 AND device_id = $2
ORDER BY time DESC, seq DESC
LIMIT 1

-- name: range
SELECT time, site_id, msg_type, seq, metrics::text, device_time
FROM telemetry
WHERE tenant_id = $1 AND device_id = $2
  AND time >= $3 AND time < $4
  AND ($5::timestamptz IS NULL OR (time, seq) > ($5, $6::bigint))
ORDER BY time, seq
LIMIT $7

-- name: range_by_device_time
-- A row that did not come late was stored from 1 minute before to 5 minutes after its device time, so it is found by
-- `time`. `read` ends where the page is surely full: its rows that were stored after the cursor fill it.
-- $1 tenant, $2 device, $3 from, $4 to, $5, $6 device time and sequence after which to begin, $7 how many at most
WITH read AS (
    SELECT greatest($3::timestamptz, $5::timestamptz) AS begin_at,
           least($4::timestamptz + interval '1 minute', (
               SELECT time + interval '6 minutes' FROM telemetry
               WHERE tenant_id = $1 AND device_id = $2
                 AND time > greatest($3::timestamptz, $5::timestamptz) + interval '1 minute'
                 AND time < $4::timestamptz + interval '1 minute'
                 AND (time - device_time > interval '1 minute') IS NOT TRUE
               ORDER BY time OFFSET $7 LIMIT 1
           )) AS end_at
)
SELECT time, site_id, msg_type, seq, metrics, device_time
FROM (
    (SELECT time, site_id, msg_type, seq, metrics::text, device_time, coalesce(device_time, time) AS measured_at
     FROM telemetry
     WHERE tenant_id = $1 AND device_id = $2
       AND time >= (SELECT begin_at - interval '5 minutes' FROM read) AND time <= (SELECT end_at FROM read)
       AND (time - device_time > interval '1 minute') IS NOT TRUE
       AND coalesce(device_time, time) >= $3 AND coalesce(device_time, time) < $4
       AND ($5::timestamptz IS NULL OR (coalesce(device_time, time), seq) > ($5, $6::bigint))
     ORDER BY measured_at, seq
     LIMIT $7)
    UNION ALL
    (SELECT time, site_id, msg_type, seq, metrics::text, device_time, device_time
     FROM telemetry
     WHERE tenant_id = $1 AND device_id = $2
       AND time - device_time > interval '1 minute'
       AND time > (SELECT begin_at FROM read)
       AND device_time >= (SELECT begin_at FROM read) AND device_time < $4
       AND ($5::timestamptz IS NULL OR (device_time, seq) > ($5, $6::bigint))
     ORDER BY device_time, seq
     LIMIT $7)
) AS found
ORDER BY measured_at, seq
LIMIT $7

-- name: is_registered
SELECT EXISTS (SELECT FROM device_registry WHERE tenant_id = $1 AND device_id = $2)
