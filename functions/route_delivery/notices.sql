-- Notices to tenants: rows that are to be published, and the routes that want them.

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

-- name: routes
-- A tenant's enabled routes for notices.
-- $1 tenant, $2 how many at most
SELECT id::text AS route_id, topic_filter, destination_type, payload_filter, order_by
FROM message_routes
WHERE tenant_id = $1 AND is_enabled AND split_part(topic_filter, '/', 3) = 'notices'
ORDER BY id
LIMIT $2;
