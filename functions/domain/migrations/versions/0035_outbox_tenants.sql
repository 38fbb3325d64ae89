-- Whose a row of the outbox is: a queue is a tenant, or a tenant with what it is for, such as acme/downlinks.
ALTER TABLE delivery_outbox ADD COLUMN tenant_id text GENERATED ALWAYS AS (split_part(queue, '/', 1)) STORED;
