-- What became of devices' messages; see migration 0022.

-- name: add
-- $1 tenants as subjects name them, $2 messages written, $3 messages that were settled before
INSERT INTO message_count_changes (tenant_id, received, written, quarantined, refused, duplicate)
SELECT coalesce(tenants.tenant_id, ''), sum(written + duplicate), sum(written), 0, 0, sum(duplicate)
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS message (sender, written, duplicate)
LEFT JOIN tenants ON tenants.tenant_id = sender
GROUP BY 1

-- name: of_tenant
-- One snapshot of the counts and of the changes that are not added up yet.
-- $1 tenant
SELECT coalesce(sum(received), 0)::bigint AS received, coalesce(sum(written), 0)::bigint AS written,
       coalesce(sum(quarantined), 0)::bigint AS quarantined, coalesce(sum(refused), 0)::bigint AS refused,
       coalesce(sum(duplicate), 0)::bigint AS duplicate
FROM (
    SELECT * FROM message_counts WHERE tenant_id = $1
    UNION ALL
    SELECT * FROM message_count_changes WHERE tenant_id = $1
) AS part

-- name: of_all
SELECT coalesce(sum(received), 0)::bigint AS received, coalesce(sum(written), 0)::bigint AS written,
       coalesce(sum(quarantined), 0)::bigint AS quarantined, coalesce(sum(refused), 0)::bigint AS refused,
       coalesce(sum(duplicate), 0)::bigint AS duplicate
FROM (SELECT * FROM message_counts UNION ALL SELECT * FROM message_count_changes) AS part

-- name: fold
SELECT fold_message_counts()
