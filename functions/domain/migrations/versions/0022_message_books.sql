-- What became of devices' messages, by tenant; refusals per minute and reason; and how much quarantine may keep.

-- The tenant for which a refused message counts: the one in its subject, which NATS permissions can restrict. Empty for a
-- tenant that does not exist.
ALTER TABLE quarantine_events
    ADD COLUMN counted_for text NOT NULL DEFAULT '',
    ADD COLUMN size_bytes integer NOT NULL DEFAULT 0 CHECK (size_bytes >= 0);
UPDATE quarantine_events AS event
SET size_bytes = octet_length(payload) + octet_length(headers::text),
    counted_for = coalesce((SELECT tenant_id FROM tenants WHERE tenants.tenant_id = event.tenant_id), '');
CREATE INDEX quarantine_events_counted_for ON quarantine_events (counted_for, event_ts);

-- Each message counts once in `received` and once in one of the others. Tenant '': tenants that do not exist.
CREATE TABLE message_counts (
    tenant_id text PRIMARY KEY,
    received bigint NOT NULL,
    written bigint NOT NULL,
    quarantined bigint NOT NULL,
    refused bigint NOT NULL,
    duplicate bigint NOT NULL
) WITH (fillfactor = 50);

-- Changes of the counts. Every transaction adds rows of its own, so that batches with messages of one tenant do not wait
-- for each other; `fold_message_counts` adds them up.
CREATE TABLE message_count_changes (LIKE message_counts)
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
          autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

-- How many messages were refused in which minute: kept in quarantine, or only counted. A minute has several rows until it
-- is folded.
CREATE TABLE quarantine_minutes (
    minute timestamptz NOT NULL,
    tenant_id text NOT NULL,
    -- without what a sender wrote into it, so that there is a bounded number of them
    reason text NOT NULL,
    quarantined bigint NOT NULL,
    refused bigint NOT NULL,
    is_folded boolean NOT NULL DEFAULT false
);
CREATE INDEX quarantine_minutes_newest ON quarantine_minutes (minute, tenant_id, reason);
CREATE INDEX quarantine_minutes_to_fold ON quarantine_minutes (minute) WHERE NOT is_folded;

-- What quarantine holds of each tenant. Triggers keep it, whoever adds or removes events.
CREATE TABLE quarantine_usage (
    tenant_id text PRIMARY KEY,
    messages bigint NOT NULL,
    size_bytes bigint NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE quarantine_usage_changes (LIKE quarantine_usage)
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
          autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

-- How much quarantine keeps; one row, which `forget_refused` sets from its manifest.
CREATE TABLE quarantine_limits (
    is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    tenant_messages bigint NOT NULL DEFAULT 50000,
    tenant_bytes bigint NOT NULL DEFAULT 64000000,
    -- of all tenants that do not exist, together
    unknown_messages bigint NOT NULL DEFAULT 100,
    unknown_bytes bigint NOT NULL DEFAULT 1000000,
    -- the largest message that is kept of them
    unknown_message_bytes bigint NOT NULL DEFAULT 16384
);
INSERT INTO quarantine_limits DEFAULT VALUES;

CREATE FUNCTION count_quarantine_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO quarantine_usage_changes
        SELECT counted_for, count(*), sum(size_bytes) FROM new_rows GROUP BY counted_for;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO quarantine_usage_changes
        SELECT counted_for, -count(*), -sum(size_bytes) FROM old_rows GROUP BY counted_for;
    ELSE
        DELETE FROM quarantine_usage;
        DELETE FROM quarantine_usage_changes;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER quarantine_events_added AFTER INSERT ON quarantine_events
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_quarantine_usage();
CREATE TRIGGER quarantine_events_removed AFTER DELETE ON quarantine_events
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION count_quarantine_usage();
CREATE TRIGGER quarantine_events_emptied AFTER TRUNCATE ON quarantine_events
    FOR EACH STATEMENT EXECUTE FUNCTION count_quarantine_usage();

-- Adds the changes to the counts, unless another session does; returns how many changes there were.
CREATE FUNCTION fold_message_counts() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    folded bigint := 0;
    part bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('fold_message_counts')) THEN
        RETURN 0;
    END IF;
    WITH gone AS (DELETE FROM message_count_changes RETURNING *),
    added AS (
        INSERT INTO message_counts AS known
        SELECT tenant_id, sum(received), sum(written), sum(quarantined), sum(refused), sum(duplicate)
        FROM gone GROUP BY tenant_id
        ON CONFLICT (tenant_id) DO UPDATE SET
            received = known.received + excluded.received,
            written = known.written + excluded.written,
            quarantined = known.quarantined + excluded.quarantined,
            refused = known.refused + excluded.refused,
            duplicate = known.duplicate + excluded.duplicate
    )
    SELECT count(*) INTO part FROM gone;
    folded := folded + part;
    WITH gone AS (DELETE FROM quarantine_usage_changes RETURNING *),
    added AS (
        INSERT INTO quarantine_usage AS known
        SELECT tenant_id, sum(messages), sum(size_bytes) FROM gone GROUP BY tenant_id
        ON CONFLICT (tenant_id) DO UPDATE SET
            messages = known.messages + excluded.messages,
            size_bytes = known.size_bytes + excluded.size_bytes
    )
    SELECT count(*) INTO part FROM gone;
    folded := folded + part;
    -- Minutes that are over; what a slow transaction adds to one later is a row beside it.
    WITH gone AS (
        DELETE FROM quarantine_minutes
        WHERE NOT is_folded AND minute < date_trunc('minute', now()) - interval '1 minute'
        RETURNING *
    ),
    added AS (
        INSERT INTO quarantine_minutes
        SELECT minute, tenant_id, reason, sum(quarantined), sum(refused), true
        FROM gone GROUP BY minute, tenant_id, reason
    )
    SELECT count(*) INTO part FROM gone;
    RETURN folded + part;
END
$$;

-- The books begin with what is in quarantine now; messages that were written before are not counted.
INSERT INTO quarantine_usage
SELECT counted_for, count(*), sum(size_bytes) FROM quarantine_events GROUP BY counted_for;
INSERT INTO message_counts
SELECT counted_for, count(*), 0, count(*), 0, 0 FROM quarantine_events GROUP BY counted_for;
