-- name: public_keys
-- The public keys with which receivers verify a tenant's webhooks, at most $2 of them.
-- $1 tenant, $2 how many at most
SELECT DISTINCT destination_config ->> 'public_key' AS public_key
FROM message_routes
WHERE tenant_id = $1 AND destination_type = 'webhook' AND destination_config ->> 'public_key' IS NOT NULL
ORDER BY public_key
LIMIT $2;
