-- Accounts, quiet hours and rates of several tenants. A row without a tenant comes under the tenant '*'.

-- name: accounts
-- $1 tenants, with '*', $2 kind
SELECT coalesce(tenant_id, '*') AS owner, name, kind, tenant_id, regions, rank, senders, config::text AS config,
       secrets, updated_at
FROM provider_accounts
WHERE kind = $2 AND is_enabled AND (tenant_id = ANY ($1::text[]) OR tenant_id IS NULL AND '*' = ANY ($1::text[]))
ORDER BY name;

-- name: account
-- One account by its name, whether or not it is used: a look-up asks for what it has sent.
SELECT name, kind, tenant_id, regions, rank, senders, config::text AS config, secrets, updated_at
FROM provider_accounts
WHERE name = $1 AND kind = $2;

-- name: quiet_hours
-- $1 tenants, with '*', $2 kind
SELECT coalesce(tenant_id, '*') AS owner, tenant_id, regions, time_zone, starts, ends, days, high_passes
FROM quiet_hours
WHERE (kind IS NULL OR kind = $2)
  AND (tenant_id = ANY ($1::text[]) OR tenant_id IS NULL AND '*' = ANY ($1::text[]))
ORDER BY created_at, quiet_hours_id;

-- name: rates
-- $1 tenants, $2 kind
SELECT tenant_id AS owner, per_s, burst FROM message_rates WHERE tenant_id = ANY ($1::text[]) AND kind = $2;

-- name: lock_buckets
-- The buckets of several tenants, locked in the order of their names, and the time.
-- $1 tenants, each once, in order, $2 kind
WITH made AS (
    INSERT INTO message_buckets (tenant_id, kind) SELECT unnest($1::text[]), $2 ON CONFLICT DO NOTHING
    RETURNING tenant_id, due_at_s, high_until_s, others_until_s
),
known AS (
    SELECT tenant_id, due_at_s, high_until_s, others_until_s
    FROM message_buckets WHERE tenant_id = ANY ($1::text[]) AND kind = $2
    ORDER BY tenant_id
    FOR UPDATE
)
SELECT *, extract(epoch FROM clock_timestamp())::float8 AS now_s FROM known
UNION ALL
SELECT *, extract(epoch FROM clock_timestamp())::float8 FROM made;

-- name: find_turns
-- When several messages come back.
-- $1 tenants, $2 messages
SELECT tenant_id, message_id, come_back_at_s
FROM message_turns
WHERE (tenant_id, message_id) IN (SELECT * FROM unnest($1::text[], $2::text[]));

-- name: write_buckets
-- $1 tenants, $2 kind, $3 due at, $4 and $5 ends of the lines
UPDATE message_buckets AS bucket
SET due_at_s = given.due_at_s, high_until_s = given.high_until_s, others_until_s = given.others_until_s
FROM unnest($1::text[], $3::float8[], $4::float8[], $5::float8[]) AS given (
    tenant_id, due_at_s, high_until_s, others_until_s
)
WHERE bucket.tenant_id = given.tenant_id AND bucket.kind = $2;

-- name: write_turns
-- $1 tenants, $2 messages, $3 when they come back
INSERT INTO message_turns (tenant_id, message_id, come_back_at_s)
SELECT * FROM unnest($1::text[], $2::text[], $3::float8[])
ON CONFLICT (tenant_id, message_id) DO UPDATE SET come_back_at_s = excluded.come_back_at_s;

-- name: end_turns
-- Removes the turns of messages that are sent now, and a few of those that did not come back within a day.
-- $1 tenants, $2 messages
DELETE FROM message_turns
WHERE (tenant_id, message_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
   OR (tenant_id, message_id) IN (
       SELECT tenant_id, message_id FROM message_turns
       WHERE come_back_at_s < extract(epoch FROM now()) - 86400
       ORDER BY come_back_at_s
       LIMIT 100
   );

-- name: recipients
SELECT address, outcome, reason FROM message_recipients WHERE tenant_id = $1 AND message_id = $2;

-- name: write_recipients
-- $1 tenant, $2 message, $3 addresses, $4 outcomes, $5 status codes, $6 reasons
INSERT INTO message_recipients AS known (tenant_id, message_id, address, outcome, status_code, reason)
SELECT $1, $2, address, outcome, status_code, reason
FROM unnest($3::text[], $4::text[], $5::smallint[], $6::text[]) AS given (address, outcome, status_code, reason)
ON CONFLICT (tenant_id, message_id, address) DO UPDATE SET
    outcome = excluded.outcome, status_code = excluded.status_code, reason = excluded.reason, at = now()
WHERE known.outcome = 'waiting';
