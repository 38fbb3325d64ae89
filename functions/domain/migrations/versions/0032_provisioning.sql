-- Tokens that overlap, numbers of devices, claim codes, and the erasure of tenants.

-- A replaced token counts until previous_token_until. Sessions that began before token_rotated_at may have shown it.
ALTER TABLE device_registry
    ADD COLUMN previous_token_hash bytea CHECK (length(previous_token_hash) = 32),
    ADD COLUMN previous_token_until timestamptz,
    ADD COLUMN token_rotated_at timestamptz;

-- The proof of a session ends at once, except that of a replaced token which still counts.
CREATE OR REPLACE FUNCTION note_ended_proof() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = OLD.status
       AND NEW.previous_token_until > now() AND NEW.previous_token_hash = OLD.provision_token_hash
       AND coalesce(OLD.previous_token_until, '-infinity') <= now() THEN
        -- The time of an earlier overlap, whose sessions may not have been ended yet, is not lost.
        IF OLD.previous_token_until IS NOT NULL THEN
            NEW.proof_ended_at := greatest(OLD.proof_ended_at, OLD.token_rotated_at);
        END IF;
        NEW.token_rotated_at := now();
    ELSE
        NEW.proof_ended_at := now();
    END IF;
    RETURN NEW;
END
$$;

-- How many active devices count for each subscription, so that the room for one more is known without counting them.
-- subscription_id NULL: devices of the tenant's MAIN subscriptions.
CREATE TABLE device_counts (
    tenant_id       tenant_name NOT NULL REFERENCES tenants ON DELETE CASCADE,
    subscription_id uuid,
    active          integer     NOT NULL,
    UNIQUE NULLS NOT DISTINCT (tenant_id, subscription_id)
) WITH (fillfactor = 50);

INSERT INTO device_counts
SELECT tenant_id, subscription_id, count(*) FROM device_registry WHERE status = 'ACTIVE' GROUP BY 1, 2;

CREATE FUNCTION count_devices() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO device_counts AS known
        SELECT tenant_id, subscription_id, count(*) FROM new_rows WHERE status = 'ACTIVE' GROUP BY 1, 2 ORDER BY 1, 2
        ON CONFLICT (tenant_id, subscription_id) DO UPDATE SET active = known.active + excluded.active;
    ELSE
        -- No row is made: that of a tenant which is being deleted is gone.
        UPDATE device_counts AS known SET active = known.active - gone.active
        FROM (
            SELECT tenant_id, subscription_id, count(*) AS active FROM old_rows WHERE status = 'ACTIVE' GROUP BY 1, 2
        ) AS gone
        WHERE known.tenant_id = gone.tenant_id AND known.subscription_id IS NOT DISTINCT FROM gone.subscription_id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER devices_added AFTER INSERT ON device_registry
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_devices();
CREATE TRIGGER devices_removed AFTER DELETE ON device_registry
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION count_devices();

CREATE FUNCTION recount_device() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status = 'ACTIVE' THEN
        UPDATE device_counts SET active = active - 1
        WHERE tenant_id = OLD.tenant_id AND subscription_id IS NOT DISTINCT FROM OLD.subscription_id;
    END IF;
    IF NEW.status = 'ACTIVE' THEN
        INSERT INTO device_counts AS known VALUES (NEW.tenant_id, NEW.subscription_id, 1)
        ON CONFLICT (tenant_id, subscription_id) DO UPDATE SET active = known.active + 1;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER device_moved AFTER UPDATE ON device_registry FOR EACH ROW
    WHEN (OLD.status <> NEW.status OR OLD.tenant_id <> NEW.tenant_id
          OR OLD.subscription_id IS DISTINCT FROM NEW.subscription_id)
    EXECUTE FUNCTION recount_device();

CREATE FUNCTION forget_device_counts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM device_counts;
    RETURN NULL;
END
$$;
CREATE TRIGGER devices_emptied AFTER TRUNCATE ON device_registry
    FOR EACH STATEMENT EXECUTE FUNCTION forget_device_counts();

-- Codes that a device exchanges for a token of its own. The code itself is shown once, when it is made.
CREATE TABLE claim_codes (
    claim_code_id   uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id       tenant_name NOT NULL REFERENCES tenants ON DELETE CASCADE,
    code_sha256     bytea       NOT NULL UNIQUE CHECK (length(code_sha256) = 32),
    name            text        NOT NULL DEFAULT '',
    -- A registered device, which gets a new token. NULL: each claim registers the device that it names.
    device_id       device_name,
    -- What a new device gets.
    site_id         text        CHECK (length(site_id) BETWEEN 1 AND 128),
    subscription_id uuid,
    sensor_limit    integer     NOT NULL DEFAULT 20 CHECK (sensor_limit BETWEEN 0 AND 10000),
    metadata        jsonb       NOT NULL DEFAULT '{}',
    max_claims      integer     NOT NULL DEFAULT 1,
    claims          integer     NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL,
    revoked_at      timestamptz,
    CHECK (claims BETWEEN 0 AND max_claims),
    CHECK ((device_id IS NULL) <> (site_id IS NULL)),
    CHECK (device_id IS NULL OR max_claims = 1),
    FOREIGN KEY (tenant_id, device_id) REFERENCES device_registry ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, subscription_id) REFERENCES subscriptions (tenant_id, subscription_id)
);
CREATE INDEX claim_codes_by_tenant ON claim_codes (tenant_id, created_at DESC, claim_code_id DESC);
CREATE INDEX claim_codes_by_device ON claim_codes (tenant_id, device_id) WHERE device_id IS NOT NULL;

-- Which device was claimed with which code: a claim whose answer was lost is made again.
CREATE TABLE device_claims (
    claim_code_id uuid        NOT NULL REFERENCES claim_codes ON DELETE CASCADE,
    tenant_id     tenant_name NOT NULL,
    device_id     device_name NOT NULL,
    claimed_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (claim_code_id, device_id),
    FOREIGN KEY (tenant_id, device_id) REFERENCES device_registry ON DELETE CASCADE
);
CREATE INDEX device_claims_by_device ON device_claims (tenant_id, device_id);

-- ERASING: everything of the tenant is being deleted, and no door lets it in. It ends with the tenant's row.
ALTER TABLE tenants
    DROP CONSTRAINT tenants_status_check,
    ADD CONSTRAINT tenants_status_check CHECK (status IN ('ACTIVE', 'SUSPENDED', 'ERASING'));

-- Erasures, and what each has deleted. The record is what stays of a tenant.
CREATE TABLE tenant_erasures (
    tenant_id         tenant_name PRIMARY KEY,
    status            text        NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'done')),
    requested_at      timestamptz NOT NULL DEFAULT now(),
    -- a host that has begun a step has until then; then another one goes on
    run_at            timestamptz NOT NULL DEFAULT now(),
    -- since when looks have found nothing of before; NULL: the last one has found something
    clean_since       timestamptz,
    -- when the tenant's row was deleted
    tenant_deleted_at timestamptz,
    finished_at       timestamptz,
    -- numbers by table and by stream
    deleted_rows      jsonb       NOT NULL DEFAULT '{}',
    deleted_messages  jsonb       NOT NULL DEFAULT '{}',
    -- up to which sequence the streams were read whose subjects do not name tenants
    read_to           jsonb       NOT NULL DEFAULT '{}',
    -- what the last step failed with
    failure           text
);
CREATE INDEX tenant_erasures_running ON tenant_erasures (run_at) WHERE status = 'running';

CREATE FUNCTION refuse_during_erasure() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE'
       OR EXISTS (SELECT FROM tenant_erasures WHERE tenant_id = NEW.tenant_id AND status = 'running') THEN
        RAISE EXCEPTION 'the tenant is being erased' USING ERRCODE = 'object_in_use';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER tenants_erasing BEFORE UPDATE ON tenants FOR EACH ROW
    WHEN (OLD.status = 'ERASING' AND NEW IS DISTINCT FROM OLD) EXECUTE FUNCTION refuse_during_erasure();
CREATE TRIGGER tenants_erased BEFORE INSERT ON tenants FOR EACH ROW EXECUTE FUNCTION refuse_during_erasure();

-- Deletes up to `at_most` rows of a tenant from one table; returns how many. Other plans than by the index would read the
-- table once for each call.
CREATE FUNCTION erase_rows(part regclass, of_column name, tenant text, at_most integer) RETURNS integer
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET lock_timeout = '5s' AS $$
DECLARE
    gone integer;
BEGIN
    EXECUTE format(
        'DELETE FROM ONLY %1$s WHERE ctid = ANY (ARRAY(SELECT ctid FROM ONLY %1$s WHERE %2$I = $1 LIMIT $2))',
        part, of_column)
    USING tenant, at_most;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;
