-- How many jobs are in which state. Triggers on delivery_jobs keep the counts; see migration 0007.

-- name: of_tenants
-- One snapshot of the counts and of the changes that are not added up yet. No row for a tenant without jobs.
-- $1 tenants
SELECT tenant_id, sum(jobs)::bigint AS jobs, sum(waiting)::bigint AS waiting, sum(delivered)::bigint AS delivered,
       sum(refused)::bigint AS refused, sum(dead)::bigint AS dead, sum(waiting_bytes)::bigint AS waiting_bytes,
       sum(given_up_bytes)::bigint AS given_up_bytes
FROM (
    SELECT * FROM delivery_counts WHERE tenant_id = ANY ($1::text[])
    UNION ALL
    SELECT * FROM delivery_count_changes WHERE tenant_id = ANY ($1::text[])
) AS part
GROUP BY tenant_id

-- name: of_all
SELECT coalesce(sum(jobs), 0)::bigint AS jobs, coalesce(sum(waiting), 0)::bigint AS waiting,
       coalesce(sum(delivered), 0)::bigint AS delivered, coalesce(sum(refused), 0)::bigint AS refused,
       coalesce(sum(dead), 0)::bigint AS dead, coalesce(sum(waiting_bytes), 0)::bigint AS waiting_bytes,
       coalesce(sum(given_up_bytes), 0)::bigint AS given_up_bytes
FROM (SELECT * FROM delivery_counts UNION ALL SELECT * FROM delivery_count_changes) AS part
