-- A route's life: the health of its endpoint, pauses, replays, and notices to its tenant.

ALTER TABLE message_routes
    -- jobs are held while it is set
    ADD COLUMN paused_at timestamptz,
    -- when the route was disabled by the rule below, and not by a person; its jobs are held
    ADD COLUMN disabled_at timestamptz,
    ADD COLUMN disabled_reason text CHECK (disabled_reason IN ('ENDPOINT_GONE', 'ENDPOINT_FAILING')),
    -- digest of the endpoint of the last attempt: routes of a tenant with the same one share its health
    ADD COLUMN endpoint text;

CREATE INDEX message_routes_endpoint ON message_routes (tenant_id, endpoint);

-- One row for each endpoint that was tried. The endpoint is a digest, since URLs may hold secrets.
CREATE TABLE endpoint_health (
    tenant_id        text        NOT NULL,
    endpoint         text        NOT NULL,
    -- first failure after the last success; NULL after a success
    failing_since    timestamptz,
    -- failures since then
    failures         bigint      NOT NULL DEFAULT 0,
    last_failure_at  timestamptz,
    last_success_at  timestamptz,
    last_error_code  text,
    last_status_code smallint,
    -- start of the five days after which the endpoint is disabled
    clock_started_at timestamptz,
    -- share of the way of which the tenant was told, in percent; 0 after a recovery
    told_percent     smallint    NOT NULL DEFAULT 0,
    disabled_at      timestamptz,
    probed_at        timestamptz,
    PRIMARY KEY (tenant_id, endpoint)
) WITH (fillfactor = 70);

CREATE INDEX endpoint_health_watched ON endpoint_health (tenant_id, endpoint)
    WHERE failing_since IS NOT NULL OR told_percent > 0 OR disabled_at IS NOT NULL;

-- The failures of each endpoint by hour; kept for two days.
CREATE TABLE endpoint_failures (
    tenant_id text        NOT NULL,
    endpoint  text        NOT NULL,
    hour      timestamptz NOT NULL,
    failures  bigint      NOT NULL,
    first_at  timestamptz NOT NULL,
    last_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, endpoint, hour)
);

CREATE INDEX endpoint_failures_by_age ON endpoint_failures (hour);

-- A route that is enabled again has neither a reason nor a clock of its own; a changed destination may be
-- another endpoint.
CREATE FUNCTION keep_route_life() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.is_enabled AND NOT OLD.is_enabled THEN
        NEW.disabled_at := NULL;
        NEW.disabled_reason := NULL;
        UPDATE endpoint_health
        SET failing_since = NULL, failures = 0, clock_started_at = NULL, told_percent = 0, disabled_at = NULL
        WHERE tenant_id = OLD.tenant_id AND endpoint = OLD.endpoint
          AND (failing_since IS NOT NULL OR told_percent > 0 OR disabled_at IS NOT NULL);
    END IF;
    IF NEW.destination_config IS DISTINCT FROM OLD.destination_config THEN
        NEW.endpoint := NULL;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER message_routes_life BEFORE UPDATE ON message_routes
    FOR EACH ROW EXECUTE FUNCTION keep_route_life();

-- dead: given up after its last attempt. held: waits while its route is paused or disabled by the rule.
-- queued: on its way, sent by a replay or released.
ALTER TABLE delivery_jobs
    DROP CONSTRAINT delivery_jobs_status_check,
    ADD CONSTRAINT delivery_jobs_status_check
        CHECK (status IN ('delivered', 'failing', 'refused', 'dead', 'held', 'queued')),
    DROP CONSTRAINT delivery_jobs_attempts_check,
    ADD CONSTRAINT delivery_jobs_attempts_check CHECK (attempts >= 0),
    -- the job, until it is delivered: with it the job can be sent again
    ADD COLUMN content bytea,
    -- when the device's message was stored: finds the job of a message
    ADD COLUMN stored_at timestamptz,
    -- the replay that sent the job last; copies of the job that this replay did not send are void
    ADD COLUMN replay_id uuid;

CREATE INDEX delivery_jobs_undelivered ON delivery_jobs (tenant_id, route_id, last_attempt_at)
    WHERE status <> 'delivered';
CREATE INDEX delivery_jobs_held ON delivery_jobs (tenant_id, route_id, last_attempt_at) WHERE status = 'held';
CREATE INDEX delivery_jobs_by_message ON delivery_jobs (tenant_id, route_id, stored_at);

CREATE TABLE delivery_replays (
    tenant_id    text        NOT NULL,
    -- the caller's, or made by the API: the same request twice is one replay
    replay_id    uuid        NOT NULL,
    route_id     uuid        NOT NULL,
    kind         text        NOT NULL CHECK (kind IN ('failed', 'missing', 'recover', 'job')),
    job_id       text,
    since        timestamptz,
    -- what happened later is not part of the replay, or a job that fails again would be sent for ever
    until        timestamptz NOT NULL DEFAULT now(),
    rate_per_s   integer     NOT NULL CHECK (rate_per_s BETWEEN 1 AND 1000),
    status       text        NOT NULL DEFAULT 'running'
                 CHECK (status IN ('running', 'cancelling', 'cancelled', 'done')),
    -- 'failed' jobs first, then 'missing' ones; the cursor is the place in the present phase
    phase        text        NOT NULL CHECK (phase IN ('failed', 'missing')),
    cursor       jsonb,
    -- undelivered jobs when the replay was asked for; messages without a job are not counted ahead
    found        bigint      NOT NULL DEFAULT 0,
    sent         bigint      NOT NULL DEFAULT 0,
    examined     bigint      NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now(),
    run_at       timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    PRIMARY KEY (tenant_id, replay_id)
);

CREATE INDEX delivery_replays_running ON delivery_replays (run_at) WHERE status IN ('running', 'cancelling');
CREATE INDEX delivery_replays_by_route ON delivery_replays (tenant_id, route_id, created_at DESC);

-- Notices to tenants. A row is published on the stream after the transaction that made it.
CREATE TABLE notices (
    notice_id    uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id    text        NOT NULL,
    kind         text        NOT NULL CHECK (kind ~ '^[a-z0-9_]{1,32}$'),
    -- the same key is the same notice: at most one for an endpoint, window and threshold
    dedupe_key   text        NOT NULL,
    data         jsonb       NOT NULL,
    -- false: the notice is about the delivery of notices, and is not delivered itself
    is_routed    boolean     NOT NULL DEFAULT true,
    -- how often it happened; what came after the first is counted here alone
    count        bigint      NOT NULL DEFAULT 1,
    created_at   timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz,
    UNIQUE (tenant_id, dedupe_key)
);

CREATE INDEX notices_unpublished ON notices (created_at) WHERE published_at IS NULL;
CREATE INDEX notices_by_tenant ON notices (tenant_id, created_at DESC, notice_id);
CREATE INDEX notices_by_age ON notices (created_at);
