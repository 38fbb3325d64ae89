-- The number of a tenant's routes.

-- name: lock_tenant
-- One request at a time adds a route to a tenant, so that the count does not change meanwhile.
SELECT 1 FROM tenants WHERE tenant_id = $1 FOR NO KEY UPDATE

-- name: count_routes
SELECT count(*) FROM message_routes WHERE tenant_id = $1
