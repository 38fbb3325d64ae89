-- name: page
SELECT tenant_id, job_id, attempt, route_id, destination_type, started_at, duration_ms, outcome, status_code,
       error_code, response_excerpt
FROM delivery_attempts
WHERE ($1::text IS NULL OR tenant_id = $1)
  AND ($2::text IS NULL OR route_id = $2)
  AND ($3::text IS NULL OR job_id = $3)
  AND ($4::text IS NULL OR outcome = $4)
  AND ($5::timestamptz IS NULL OR started_at >= $5)
  AND ($6::timestamptz IS NULL OR (started_at, tenant_id, job_id, attempt) < ($6, $7, $8, $9::integer))
ORDER BY started_at DESC, tenant_id DESC, job_id DESC, attempt DESC
LIMIT $10
