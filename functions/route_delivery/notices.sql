-- Notices to tenants: rows that are to be published.

-- name: unpublished
-- $1 how many at most
SELECT notice_id, tenant_id, kind, data::text, is_routed, created_at
FROM notices
WHERE published_at IS NULL
ORDER BY created_at
LIMIT $1;

-- name: mark
-- $1 notices
UPDATE notices SET published_at = now() WHERE notice_id = ANY ($1::uuid[]);

-- name: forget_old
-- $1 days, $2 how many at most
DELETE FROM notices
WHERE notice_id IN (
    SELECT notice_id FROM notices
    WHERE published_at IS NOT NULL AND created_at < now() - $1::integer * interval '1 day'
    ORDER BY created_at
    LIMIT $2
);
