-- name: add
-- Writes a notice, or counts more of the same.
-- $1 tenant, $2 kind, $3 key, $4 data, $5 is it routed, $6 how often it happened
INSERT INTO notices AS known (tenant_id, kind, dedupe_key, data, is_routed, count)
VALUES ($1, $2, $3, $4::text::jsonb, $5, $6)
ON CONFLICT (tenant_id, dedupe_key) DO UPDATE SET count = known.count + excluded.count
