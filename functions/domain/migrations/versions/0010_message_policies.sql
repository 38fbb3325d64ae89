-- Who sends a message, when, and how many: a row without a tenant applies to all tenants.

-- The text of a region is a prefix of E.164 numbers, such as +43, or a region's name, such as eu-west. No region: all.
CREATE TABLE provider_accounts (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,63}$'),
    kind text NOT NULL CHECK (kind IN ('sms', 'email', 'webhook')),
    tenant_id tenant_name REFERENCES tenants ON DELETE CASCADE,
    regions text[] NOT NULL DEFAULT '{}',
    -- of accounts that fit equally well, the lowest rank is used first
    rank integer NOT NULL DEFAULT 100,
    -- the senders that a message may state: an address, a number, @domain, or *
    senders text[] NOT NULL DEFAULT '{}',
    -- what callers may see
    config jsonb NOT NULL,
    -- the rest, encrypted
    secrets bytea,
    is_enabled boolean NOT NULL DEFAULT TRUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX provider_accounts_by_tenant ON provider_accounts (tenant_id);

CREATE TABLE quiet_hours (
    quiet_hours_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id tenant_name REFERENCES tenants ON DELETE CASCADE,
    -- NULL: messages of every kind
    kind text CHECK (kind IN ('sms', 'email', 'webhook')),
    regions text[] NOT NULL DEFAULT '{}',
    time_zone text NOT NULL,
    starts time NOT NULL,
    ends time NOT NULL,
    -- the days on which they begin, 0 for Monday
    days smallint[] NOT NULL DEFAULT '{0,1,2,3,4,5,6}',
    high_passes boolean NOT NULL DEFAULT FALSE,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX quiet_hours_by_tenant ON quiet_hours (tenant_id);

-- The rate of a tenant's messages of one kind.
CREATE TABLE message_rates (
    tenant_id tenant_name NOT NULL REFERENCES tenants ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('sms', 'email', 'webhook')),
    per_s double precision NOT NULL CHECK (per_s > 0),
    burst integer NOT NULL CHECK (burst > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, kind)
);

-- The token bucket of a tenant's rate, which all hosts share, in seconds since 1970 of this server's clock. No
-- reference to tenants: the bucket of a rate from the manifest belongs to whatever tenant a message names.
CREATE TABLE message_buckets (
    tenant_id text NOT NULL,
    kind text NOT NULL,
    due_at_s double precision NOT NULL DEFAULT 0,
    high_until_s double precision NOT NULL DEFAULT 0,
    others_until_s double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, kind)
);

-- When a message beyond the rate comes back. Deleted when it is sent, and a day after its time.
CREATE TABLE message_turns (
    tenant_id text NOT NULL,
    message_id text NOT NULL,
    come_back_at_s double precision NOT NULL,
    PRIMARY KEY (tenant_id, message_id)
);

CREATE INDEX message_turns_by_time ON message_turns (come_back_at_s);

-- What the mail server said of each recipient, of emails that some recipients did not get at once.
CREATE TABLE message_recipients (
    tenant_id text NOT NULL,
    message_id text NOT NULL,
    address text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('accepted', 'waiting', 'refused')),
    status_code smallint,
    reason text,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, message_id, address),
    FOREIGN KEY (tenant_id, message_id) REFERENCES messages ON DELETE CASCADE
);

CREATE FUNCTION notify_message_policy_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify('registry_changed', 'all');
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        PERFORM pg_notify('registry_changed', 'message-policies/' || coalesce(OLD.tenant_id, '*'));
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM pg_notify('registry_changed', 'message-policies/' || coalesce(NEW.tenant_id, '*'));
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER provider_accounts_changed AFTER INSERT OR UPDATE OR DELETE ON provider_accounts
    FOR EACH ROW EXECUTE FUNCTION notify_message_policy_change();
CREATE TRIGGER quiet_hours_changed AFTER INSERT OR UPDATE OR DELETE ON quiet_hours
    FOR EACH ROW EXECUTE FUNCTION notify_message_policy_change();
CREATE TRIGGER message_rates_changed AFTER INSERT OR UPDATE OR DELETE ON message_rates
    FOR EACH ROW EXECUTE FUNCTION notify_message_policy_change();
CREATE TRIGGER provider_accounts_emptied AFTER TRUNCATE ON provider_accounts
    FOR EACH STATEMENT EXECUTE FUNCTION notify_message_policy_change();
CREATE TRIGGER quiet_hours_emptied AFTER TRUNCATE ON quiet_hours
    FOR EACH STATEMENT EXECUTE FUNCTION notify_message_policy_change();
CREATE TRIGGER message_rates_emptied AFTER TRUNCATE ON message_rates
    FOR EACH STATEMENT EXECUTE FUNCTION notify_message_policy_change();
