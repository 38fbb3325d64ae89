-- Jobs that were given up.

-- name: mark_dead
-- A redriven job is dead until its next attempt. A refused one stays refused.
-- Its letter has headers and a trace beside the job: `DEAD_LETTER_BYTES`.
-- $1 tenants, $2 jobs
UPDATE delivery_jobs AS job
SET status = 'dead', size_bytes = coalesce(octet_length(job.content), job.size_bytes) + 2000
FROM unnest($1::text[], $2::text[]) AS given_up (tenant_id, job_id)
WHERE job.tenant_id = given_up.tenant_id
  AND job.job_id = given_up.job_id
  AND job.status IN ('waiting', 'failing', 'held')

-- name: last_attempts
-- $1 tenants, $2 jobs
SELECT asked.tenant_id, asked.job_id, last.attempt, last.error_code, last.status_code
FROM unnest($1::text[], $2::text[]) AS asked (tenant_id, job_id)
CROSS JOIN LATERAL (
    SELECT attempt, error_code, status_code
    FROM delivery_attempts
    WHERE tenant_id = asked.tenant_id AND job_id = asked.job_id
    ORDER BY attempt DESC
    LIMIT 1
) AS last
