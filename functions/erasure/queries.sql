-- Erasures of tenants: their requests, and their steps.

-- name: lock_tenant
SELECT status FROM tenants WHERE tenant_id = $1 FOR UPDATE

-- name: close_tenant
-- The notification of this change ends the tenant's sessions, and has every cache of the registry ask again.
UPDATE tenants SET status = 'ERASING', updated_at = now() WHERE tenant_id = $1

-- name: request
-- The record of an earlier tenant with this id gives way.
INSERT INTO tenant_erasures (tenant_id) VALUES ($1)
ON CONFLICT (tenant_id) DO UPDATE SET
    status = 'running', requested_at = now(), run_at = now(), clean_since = NULL, tenant_deleted_at = NULL,
    finished_at = NULL, deleted_rows = '{}', deleted_messages = '{}', read_to = '{}', failure = NULL

-- name: find
SELECT tenant_id, status, requested_at, tenant_deleted_at, finished_at, deleted_rows::text, deleted_messages::text, failure
FROM tenant_erasures
WHERE tenant_id = $1

-- name: begin
-- Takes one erasure that is due. When its host dies, another one goes on after a minute.
UPDATE tenant_erasures AS erasure SET run_at = now() + interval '1 minute'
FROM (
    SELECT tenant_id FROM tenant_erasures
    WHERE status = 'running' AND run_at <= now()
    ORDER BY run_at
    LIMIT 1
    FOR UPDATE SKIP LOCKED
) AS due
WHERE erasure.tenant_id = due.tenant_id
RETURNING erasure.tenant_id, read_to::text, tenant_deleted_at,
          tenant_deleted_at + $1::interval > now() AS is_settling

-- name: tables
-- The tables with a tenant's column, and of a partition the table whose rows they are. $1 tables and $2 their columns that
-- hold a tenant under another name.
SELECT c.oid::regclass::text AS name, coalesce(parent.relname, c.relname)::text AS shown, a.attname::text AS of_column
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
LEFT JOIN pg_class parent ON parent.oid = i.inhparent
JOIN pg_type t ON t.oid = a.atttypid
WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace
  AND c.relname NOT IN ('tenants', 'tenant_erasures')
  AND coalesce(nullif(t.typbasetype, 0), t.oid) IN ('text'::regtype, 'varchar'::regtype)
  AND (a.attname = 'tenant_id'
       OR EXISTS (SELECT FROM unnest($1::text[], $2::text[]) AS other (name, of_column)
                  WHERE other.name = c.relname AND other.of_column = a.attname))
ORDER BY 1, 3

-- name: references
-- Which table refers to which, but not those that refer to themselves.
SELECT DISTINCT conrelid::regclass::text AS referring, confrelid::regclass::text AS referred
FROM pg_constraint
WHERE contype = 'f' AND conrelid <> confrelid

-- name: erase_rows
-- Deletes and counts in one transaction. $1 tenant, $2 table, $3 column, $4 how many, $5 under which name they count
WITH erased AS MATERIALIZED (SELECT erase_rows($2::text::regclass, $3::text::name, $1::text, $4::integer) AS gone)
UPDATE tenant_erasures AS erasure
SET deleted_rows = CASE WHEN gone = 0 THEN deleted_rows
        ELSE deleted_rows || jsonb_build_object($5::text, coalesce((deleted_rows ->> $5::text)::bigint, 0) + gone) END,
    run_at = now() + interval '1 minute'
FROM erased
WHERE erasure.tenant_id = $1::text
RETURNING gone

-- name: note_messages
-- $1 tenant, $2 stream, $3 how many were deleted, $4 up to which sequence it was read, NULL for a stream that is not read
UPDATE tenant_erasures
SET deleted_messages = CASE WHEN $3::bigint = 0 THEN deleted_messages
        ELSE deleted_messages || jsonb_build_object($2::text, coalesce((deleted_messages ->> $2::text)::bigint, 0) + $3) END,
    read_to = CASE WHEN $4::bigint IS NULL THEN read_to ELSE read_to || jsonb_build_object($2::text, $4::bigint) END,
    run_at = now() + interval '1 minute'
WHERE tenant_id = $1

-- name: pause
-- A look that was not finished, or found something. $1 tenant, $2 why it failed, if it did
UPDATE tenant_erasures
SET clean_since = NULL, failure = $2, run_at = now() + CASE WHEN $2::text IS NULL THEN interval '0' ELSE interval '5 seconds' END
WHERE tenant_id = $1 AND status = 'running'

-- name: note_clean
-- A whole look that found nothing of before. $1 tenant, $2 how long looks must find nothing; true: long enough
UPDATE tenant_erasures
SET clean_since = coalesce(clean_since, now()), failure = NULL, run_at = now() + least($2::interval / 4, interval '5 seconds')
WHERE tenant_id = $1 AND status = 'running'
RETURNING clean_since + $2::interval <= now()

-- name: delete_tenant
-- With what refers to it and came after the last look.
DELETE FROM tenants WHERE tenant_id = $1 AND status = 'ERASING'

-- name: note_deleted
UPDATE tenant_erasures SET tenant_deleted_at = now(), run_at = now() WHERE tenant_id = $1

-- name: postpone
-- $1 tenant, $2 until how long after the tenant's row was deleted
UPDATE tenant_erasures SET run_at = tenant_deleted_at + $2::interval WHERE tenant_id = $1

-- name: end
UPDATE tenant_erasures SET status = 'done', finished_at = now(), failure = NULL WHERE tenant_id = $1
RETURNING deleted_rows::text, deleted_messages::text
