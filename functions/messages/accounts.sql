-- name: insert
-- $1 name, $2 kind, $3 tenant, $4 regions, $5 rank, $6 senders, $7 config, $8 secrets, $9 whether it is used
INSERT INTO provider_accounts (name, kind, tenant_id, regions, rank, senders, config, secrets, is_enabled)
VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, $9)
RETURNING name, kind, tenant_id, regions, rank, senders, config::text, secrets, is_enabled, created_at, updated_at

-- name: find
SELECT name, kind, tenant_id, regions, rank, senders, config::text, secrets, is_enabled, created_at, updated_at
FROM provider_accounts WHERE name = $1

-- name: lock
SELECT name, kind, tenant_id, regions, rank, senders, config::text, secrets, is_enabled, created_at, updated_at
FROM provider_accounts WHERE name = $1 FOR UPDATE

-- name: page
-- $1 tenant or NULL, $2 kind or NULL, $3 name of the last one before, or NULL, $4 how many
SELECT name, kind, tenant_id, regions, rank, senders, config::text, secrets, is_enabled, created_at, updated_at
FROM provider_accounts
WHERE ($1::text IS NULL OR tenant_id = $1) AND ($2::text IS NULL OR kind = $2) AND ($3::text IS NULL OR name > $3)
ORDER BY name
LIMIT $4

-- name: update
-- $1 name, $2 regions, $3 rank, $4 senders, $5 config, $6 secrets, $7 whether it is used
UPDATE provider_accounts
SET regions = $2, rank = $3, senders = $4, config = $5::text::jsonb, secrets = $6, is_enabled = $7, updated_at = now()
WHERE name = $1
RETURNING name, kind, tenant_id, regions, rank, senders, config::text, secrets, is_enabled, created_at, updated_at

-- name: delete
DELETE FROM provider_accounts WHERE name = $1 RETURNING name, kind, tenant_id

-- name: old_secrets
-- Accounts whose secrets are not encrypted with the first key.
-- $1 name of the last one before, $2 the first bytes of texts that the first key encrypts, $3 how many
SELECT name, secrets FROM provider_accounts
WHERE secrets IS NOT NULL AND name > $1 AND substring(secrets FOR length($2::bytea)) <> $2
ORDER BY name
LIMIT $3

-- name: replace_secrets
-- $1 name, $2 the secrets as they were read, $3 the same, encrypted with the first key
UPDATE provider_accounts SET secrets = $3, updated_at = now() WHERE name = $1 AND secrets = $2
