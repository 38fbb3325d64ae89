-- What the books of delivery say beside the counts.

-- name: has_tenant
SELECT EXISTS (SELECT FROM tenants WHERE tenant_id = $1)

-- name: outbox_of_all
SELECT count(*) AS in_outbox, min(stored_at) AS oldest_in_outbox_at, now() AS read_at
FROM delivery_outbox
WHERE body IS NULL

-- name: outbox_of_tenant
SELECT count(*) AS in_outbox, min(stored_at) AS oldest_in_outbox_at, now() AS read_at
FROM delivery_outbox
WHERE queue = $1 AND body IS NULL
