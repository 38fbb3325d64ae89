-- Text messages, email and queued webhooks: the row is the message, its queue only says that it is there to be sent.

CREATE TABLE messages (
    -- no reference: a message that a program publishes may name a tenant that devices do not have
    tenant_id text NOT NULL CHECK (tenant_id ~ '^[A-Za-z0-9_-]{1,64}$'),
    message_id text NOT NULL CHECK (message_id ~ '^[A-Za-z0-9_-]{1,128}$'),
    kind text NOT NULL CHECK (kind IN ('sms', 'email', 'webhook')),
    idempotency_key text CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    -- SHA-256 of kind and content
    fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
    content jsonb NOT NULL,
    status text NOT NULL DEFAULT 'queued' CHECK (status IN (
        'queued', 'sending', 'sent', 'delivered', 'failed', 'refused', 'unknown'
    )),
    -- +1 with each transition; the transitions are numbered so
    number integer NOT NULL DEFAULT 1,
    attempts integer NOT NULL DEFAULT 0,
    -- attempts before this one do not count towards the limit: a person has asked for more, or the provider was busy
    free_attempts integer NOT NULL DEFAULT 0,
    -- sending: until then the attempt may be running
    lease_until timestamptz,
    -- when the row is to be looked at, whatever its queue does; NULL: never again
    check_at timestamptz,
    -- how often a look-up at the provider has been made in this status
    checks integer NOT NULL DEFAULT 0,
    -- its place in the stream; NULL: not known to be there
    stream_sequence bigint,
    -- the provider's account, and the provider's id of the message
    provider text,
    provider_id text,
    error_code text,
    reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (tenant_id, message_id)
);

CREATE UNIQUE INDEX messages_by_idempotency_key ON messages (tenant_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX messages_by_time ON messages (tenant_id, created_at DESC, message_id DESC);
CREATE INDEX messages_to_check ON messages (kind, check_at) WHERE check_at IS NOT NULL;
CREATE INDEX messages_by_provider_id ON messages (provider_id) WHERE provider_id IS NOT NULL;
CREATE INDEX messages_by_age ON messages (updated_at);

-- Every call of a provider; without an outcome it is under way, or its host died.
CREATE TABLE message_attempts (
    tenant_id text NOT NULL,
    message_id text NOT NULL,
    attempt integer NOT NULL CHECK (attempt > 0),
    provider text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    outcome text CHECK (outcome IN ('sent', 'delivered', 'failed', 'busy', 'refused', 'unknown')),
    status_code smallint,
    error_code text,
    reason text,
    provider_id text,
    PRIMARY KEY (tenant_id, message_id, attempt),
    FOREIGN KEY (tenant_id, message_id) REFERENCES messages ON DELETE CASCADE
);

-- Every transition. It is published on the status subject too: an outbox, until announced_at is set.
CREATE TABLE message_events (
    tenant_id text NOT NULL,
    message_id text NOT NULL,
    number integer NOT NULL CHECK (number > 0),
    kind text NOT NULL,
    status text NOT NULL,
    attempts integer NOT NULL,
    provider text,
    provider_id text,
    error_code text,
    at timestamptz NOT NULL DEFAULT now(),
    announced_at timestamptz,
    PRIMARY KEY (tenant_id, message_id, number),
    FOREIGN KEY (tenant_id, message_id) REFERENCES messages ON DELETE CASCADE
);

CREATE INDEX message_events_unannounced ON message_events (at) WHERE announced_at IS NULL;

-- Keys with which a tenant's own programs use the API. The key itself is shown once, when it is made.
CREATE TABLE tenant_keys (
    key_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id tenant_name NOT NULL REFERENCES tenants ON DELETE CASCADE,
    name text NOT NULL DEFAULT '',
    key_sha256 bytea NOT NULL UNIQUE CHECK (length(key_sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);

CREATE INDEX tenant_keys_by_tenant ON tenant_keys (tenant_id, created_at DESC, key_id DESC);
