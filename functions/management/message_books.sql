-- What the books of messages say beside the counts.

-- name: has_tenant
SELECT EXISTS (SELECT FROM tenants WHERE tenant_id = $1)

-- name: kept
-- $1 tenant; NULL for all
SELECT coalesce(sum(messages), 0)::bigint AS kept, coalesce(sum(size_bytes), 0)::bigint AS kept_bytes, now() AS read_at
FROM (SELECT * FROM quarantine_usage UNION ALL SELECT * FROM quarantine_usage_changes) AS part
WHERE $1::text IS NULL OR tenant_id = $1
