-- Every id is checked here too, so that a tool beside the management API cannot put in what a topic cannot name.
CREATE DOMAIN tenant_name AS text CHECK (VALUE ~ '^[A-Za-z0-9_-]{1,64}$');
CREATE DOMAIN device_name AS text CHECK (VALUE ~ '^[A-Za-z0-9_.:-]{1,128}$');

CREATE TABLE tenants (
    tenant_id  tenant_name PRIMARY KEY,
    name       text        NOT NULL DEFAULT '',
    status     text        NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'SUSPENDED')),
    metadata   jsonb       NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE subscriptions (
    subscription_id uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id       tenant_name NOT NULL REFERENCES tenants ON DELETE CASCADE,
    type            text        NOT NULL DEFAULT 'MAIN'
                    CHECK (type IN ('MAIN', 'ADDON', 'TRIAL', 'TEMPORARY')),
    status          text        NOT NULL DEFAULT 'ACTIVE'
                    CHECK (status IN ('TRIAL', 'ACTIVE', 'GRACE', 'SUSPENDED', 'EXPIRED')),
    device_limit    integer     NOT NULL DEFAULT 100 CHECK (device_limit >= 0),
    starts_at       timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, subscription_id)
);

CREATE TABLE device_registry (
    tenant_id            tenant_name NOT NULL REFERENCES tenants ON DELETE CASCADE,
    device_id            device_name NOT NULL,
    site_id              text        NOT NULL CHECK (length(site_id) BETWEEN 1 AND 128),
    status               text        NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'REVOKED')),
    -- SHA-256 of the token; the token itself is shown once, when it is made.
    provision_token_hash bytea       CHECK (length(provision_token_hash) = 32),
    metadata             jsonb       NOT NULL DEFAULT '{}',
    -- NULL: the tenant's MAIN subscription counts.
    subscription_id      uuid,
    sensor_limit         integer     NOT NULL DEFAULT 20 CHECK (sensor_limit BETWEEN 0 AND 10000),
    created_at           timestamptz NOT NULL DEFAULT now(),
    updated_at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, device_id),
    FOREIGN KEY (tenant_id, subscription_id) REFERENCES subscriptions (tenant_id, subscription_id)
);
CREATE INDEX device_registry_subscription ON device_registry (subscription_id);

CREATE TABLE device_certificates (
    certificate_id     uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id          tenant_name NOT NULL,
    device_id          device_name NOT NULL,
    -- The certificate's common name is tenant_id/device_id.
    fingerprint_sha256 text        NOT NULL UNIQUE,
    status             text        NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'REVOKED')),
    not_before         timestamptz NOT NULL DEFAULT now(),
    not_after          timestamptz NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (tenant_id, device_id) REFERENCES device_registry ON DELETE CASCADE
);
CREATE INDEX device_certificates_device ON device_certificates (tenant_id, device_id);

CREATE TABLE device_sensors (
    tenant_id     tenant_name NOT NULL,
    device_id     device_name NOT NULL,
    sensor        text        NOT NULL,
    first_seen_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, device_id, sensor),
    FOREIGN KEY (tenant_id, device_id) REFERENCES device_registry ON DELETE CASCADE
);

-- time and seq are the stream's: the same on every delivery, so the unique key makes a row exactly once.
CREATE TABLE telemetry (
    time      timestamptz NOT NULL,
    tenant_id text        NOT NULL,
    device_id text        NOT NULL,
    site_id   text        NOT NULL,
    msg_type  text        NOT NULL,
    seq       bigint      NOT NULL,
    metrics   jsonb       NOT NULL,
    UNIQUE (tenant_id, device_id, time, seq)
) PARTITION BY RANGE (time);

-- A row whose day has no partition yet is never refused.
CREATE TABLE telemetry_default PARTITION OF telemetry DEFAULT;

CREATE TABLE quarantine_events (
    quarantine_id bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_ts      timestamptz NOT NULL DEFAULT now(),
    stream        text        NOT NULL,
    sequence      bigint      NOT NULL,
    stored_at     timestamptz NOT NULL,
    subject       text        NOT NULL,
    topic         text        NOT NULL DEFAULT '',
    tenant_id     text        NOT NULL DEFAULT '',
    site_id       text        NOT NULL DEFAULT '',
    device_id     text        NOT NULL DEFAULT '',
    msg_type      text        NOT NULL DEFAULT '',
    reason        text        NOT NULL,
    detail        text        NOT NULL DEFAULT '',
    payload       bytea       NOT NULL,
    headers       jsonb       NOT NULL DEFAULT '{}',
    UNIQUE (stream, sequence, stored_at)
);
CREATE INDEX quarantine_events_tenant ON quarantine_events (tenant_id, event_ts DESC);
CREATE INDEX quarantine_events_time ON quarantine_events (event_ts DESC);

CREATE TABLE message_routes (
    id                 uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id          tenant_name NOT NULL REFERENCES tenants ON DELETE CASCADE,
    name               text        NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    topic_filter       text        NOT NULL,
    destination_type   text        NOT NULL CHECK (destination_type ~ '^[a-z0-9_]{1,32}$'),
    destination_config jsonb       NOT NULL DEFAULT '{}',
    -- A CEL expression; NULL: every message on the topic.
    payload_filter     text,
    is_enabled         boolean     NOT NULL DEFAULT true,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, name)
);

-- Caches listen on one channel. The payload says what to forget: `tenant/{id}`, `device/{tenant}/{device}`
-- or `routes/{tenant}`.
CREATE FUNCTION notify_registry_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed jsonb;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify('registry_changed', 'all');
        RETURN NULL;
    END IF;
    FOR changed IN
        SELECT DISTINCT part FROM (VALUES (to_jsonb(OLD)), (to_jsonb(NEW))) AS row_of (part)
        WHERE part IS NOT NULL
    LOOP
        PERFORM pg_notify('registry_changed', CASE TG_ARGV[0]
            WHEN 'device' THEN 'device/' || (changed ->> 'tenant_id') || '/' || (changed ->> 'device_id')
            ELSE TG_ARGV[0] || '/' || (changed ->> 'tenant_id')
        END);
    END LOOP;
    RETURN NULL;
END
$$;

CREATE TRIGGER tenants_changed AFTER INSERT OR UPDATE OR DELETE ON tenants
    FOR EACH ROW EXECUTE FUNCTION notify_registry_change('tenant');
CREATE TRIGGER subscriptions_changed AFTER INSERT OR UPDATE OR DELETE ON subscriptions
    FOR EACH ROW EXECUTE FUNCTION notify_registry_change('tenant');
CREATE TRIGGER device_registry_changed AFTER INSERT OR UPDATE OR DELETE ON device_registry
    FOR EACH ROW EXECUTE FUNCTION notify_registry_change('device');
CREATE TRIGGER device_certificates_changed AFTER INSERT OR UPDATE OR DELETE ON device_certificates
    FOR EACH ROW EXECUTE FUNCTION notify_registry_change('device');
CREATE TRIGGER message_routes_changed AFTER INSERT OR UPDATE OR DELETE ON message_routes
    FOR EACH ROW EXECUTE FUNCTION notify_registry_change('routes');
CREATE TRIGGER tenants_emptied AFTER TRUNCATE ON tenants
    FOR EACH STATEMENT EXECUTE FUNCTION notify_registry_change('tenant');
CREATE TRIGGER subscriptions_emptied AFTER TRUNCATE ON subscriptions
    FOR EACH STATEMENT EXECUTE FUNCTION notify_registry_change('tenant');
CREATE TRIGGER device_registry_emptied AFTER TRUNCATE ON device_registry
    FOR EACH STATEMENT EXECUTE FUNCTION notify_registry_change('device');
CREATE TRIGGER device_certificates_emptied AFTER TRUNCATE ON device_certificates
    FOR EACH STATEMENT EXECUTE FUNCTION notify_registry_change('device');
CREATE TRIGGER message_routes_emptied AFTER TRUNCATE ON message_routes
    FOR EACH STATEMENT EXECUTE FUNCTION notify_registry_change('routes');

-- Makes the daily partitions (UTC) from today to `days_ahead` days later; returns how many are new. Rows that
-- went into the default partition meanwhile move into the new one. Several hosts may call it at once.
CREATE FUNCTION ensure_telemetry_partitions(days_ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    first_day date := (now() AT TIME ZONE 'UTC')::date;
    day       date;
    part      text;
    made      integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ensure_telemetry_partitions'));
    FOR i IN 0 .. days_ahead LOOP
        day := first_day + i;
        part := 'telemetry_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass(part) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I (LIKE telemetry INCLUDING ALL)', part);
        LOCK TABLE telemetry_default IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'WITH moved AS (DELETE FROM telemetry_default WHERE time >= %L AND time < %L RETURNING *)
             INSERT INTO %I SELECT * FROM moved',
            day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC', part);
        EXECUTE format('ALTER TABLE telemetry ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            part, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

-- Drops the daily partitions that ended before `keep_days` days ago; returns how many.
CREATE FUNCTION drop_old_telemetry_partitions(keep_days integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    oldest  date := (now() AT TIME ZONE 'UTC')::date - keep_days;
    part    text;
    dropped integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ensure_telemetry_partitions'));
    FOR part IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'telemetry'::regclass AND c.relname ~ '^telemetry_[0-9]{8}$'
          AND to_date(right(c.relname, 8), 'YYYYMMDD') < oldest
    LOOP
        EXECUTE format('DROP TABLE %I', part);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

SELECT ensure_telemetry_partitions(7);
