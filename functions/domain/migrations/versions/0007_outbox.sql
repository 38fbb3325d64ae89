-- A job has its row from the moment it is made, in the transaction of the message that it was made of.

-- From now on `queued` is the first state of every job, and `content` is there from the beginning. Until the first
-- attempt, first_attempt_at and last_attempt_at are the time at which the job was made.
ALTER TABLE delivery_jobs
    ADD COLUMN size_bytes integer NOT NULL DEFAULT 0 CHECK (size_bytes >= 0),
    -- Why the job was refused when it was made; NULL for any other job.
    ADD COLUMN refusal text,
    -- The one stored message that is this job, as stream-sequence-time; NULL while nobody doubts it.
    ADD COLUMN only_copy text;

-- Jobs that wait to be published. Rows live for milliseconds, or as long as their stream takes none.
CREATE TABLE delivery_outbox (
    outbox_id bigint GENERATED ALWAYS AS IDENTITY,
    -- queues take turns: a tenant's jobs, or messages of one kind that are no jobs
    queue text NOT NULL,
    subject text NOT NULL,
    msg_id text NOT NULL,
    -- one header: name and value; both NULL for none
    header text[] CHECK (array_length(header, 1) = 2),
    -- NULL: the content of the job whose tenant is `queue` and whose id is `msg_id`
    body bytea,
    stored_at timestamptz NOT NULL DEFAULT now(),
    -- a queue keeps the order in which its rows were made
    PRIMARY KEY (queue, outbox_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

-- Rows of the outbox whose publishing was begun: after a crash, the stream may have them already.
CREATE TABLE delivery_handovers (
    handover_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    outbox_ids int8multirange NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE FUNCTION notify_delivery_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('delivery_outbox', '');
    RETURN NULL;
END
$$;
CREATE TRIGGER delivery_outbox_grew AFTER INSERT ON delivery_outbox
    FOR EACH STATEMENT EXECUTE FUNCTION notify_delivery_outbox();

-- How many jobs are in which state. A job counts once in `jobs` and once in one of the others.
CREATE TABLE delivery_counts (
    tenant_id text PRIMARY KEY,
    jobs bigint NOT NULL,
    waiting bigint NOT NULL,
    delivered bigint NOT NULL,
    refused bigint NOT NULL,
    dead bigint NOT NULL,
    waiting_bytes bigint NOT NULL,
    -- of refused and dead jobs
    given_up_bytes bigint NOT NULL
) WITH (fillfactor = 50);

-- Changes of the counts. Every statement adds rows of its own, so that transactions which change the jobs of one
-- tenant do not wait for each other; `fold_delivery_counts` adds them up.
CREATE TABLE delivery_count_changes (LIKE delivery_counts)
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
          autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

CREATE FUNCTION count_delivery_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO delivery_count_changes
        SELECT tenant_id, count(*), count(*) FILTER (WHERE status IN ('queued', 'failing', 'held')),
               count(*) FILTER (WHERE status = 'delivered'), count(*) FILTER (WHERE status = 'refused'),
               count(*) FILTER (WHERE status = 'dead'),
               coalesce(sum(size_bytes) FILTER (WHERE status IN ('queued', 'failing', 'held')), 0),
               coalesce(sum(size_bytes) FILTER (WHERE status IN ('refused', 'dead')), 0)
        FROM new_rows GROUP BY tenant_id;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO delivery_count_changes
        SELECT tenant_id, -count(*), -count(*) FILTER (WHERE status IN ('queued', 'failing', 'held')),
               -count(*) FILTER (WHERE status = 'delivered'), -count(*) FILTER (WHERE status = 'refused'),
               -count(*) FILTER (WHERE status = 'dead'),
               -coalesce(sum(size_bytes) FILTER (WHERE status IN ('queued', 'failing', 'held')), 0),
               -coalesce(sum(size_bytes) FILTER (WHERE status IN ('refused', 'dead')), 0)
        FROM old_rows GROUP BY tenant_id;
    ELSE
        -- A failed attempt of a job that failed before changes no count.
        INSERT INTO delivery_count_changes
        SELECT * FROM (
            SELECT tenant_id, 0,
                   coalesce(sum(sign) FILTER (WHERE status IN ('queued', 'failing', 'held')), 0) AS waiting,
                   coalesce(sum(sign) FILTER (WHERE status = 'delivered'), 0) AS delivered,
                   coalesce(sum(sign) FILTER (WHERE status = 'refused'), 0) AS refused,
                   coalesce(sum(sign) FILTER (WHERE status = 'dead'), 0) AS dead,
                   coalesce(sum(sign * size_bytes) FILTER (WHERE status IN ('queued', 'failing', 'held')), 0) AS waiting_bytes,
                   coalesce(sum(sign * size_bytes) FILTER (WHERE status IN ('refused', 'dead')), 0) AS given_up_bytes
            FROM (SELECT tenant_id, status, size_bytes, 1 AS sign FROM new_rows
                  UNION ALL
                  SELECT tenant_id, status, size_bytes, -1 FROM old_rows) AS row_of
            GROUP BY tenant_id
        ) AS net
        WHERE (waiting, delivered, refused, dead, waiting_bytes, given_up_bytes) <> (0, 0, 0, 0, 0, 0);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER delivery_jobs_made AFTER INSERT ON delivery_jobs
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_delivery_jobs();
CREATE TRIGGER delivery_jobs_moved AFTER UPDATE ON delivery_jobs
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_delivery_jobs();
CREATE TRIGGER delivery_jobs_forgotten AFTER DELETE ON delivery_jobs
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION count_delivery_jobs();

-- Adds the changes to the counts, unless another session does; returns how many changes there were.
CREATE FUNCTION fold_delivery_counts() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    folded bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('fold_delivery_counts')) THEN
        RETURN 0;
    END IF;
    WITH gone AS (DELETE FROM delivery_count_changes RETURNING *),
    total AS (
        SELECT tenant_id, sum(jobs) AS jobs, sum(waiting) AS waiting, sum(delivered) AS delivered,
               sum(refused) AS refused, sum(dead) AS dead, sum(waiting_bytes) AS waiting_bytes,
               sum(given_up_bytes) AS given_up_bytes
        FROM gone GROUP BY tenant_id
    ),
    added AS (
        INSERT INTO delivery_counts AS known
        SELECT * FROM total
        ON CONFLICT (tenant_id) DO UPDATE SET
            jobs = known.jobs + excluded.jobs,
            waiting = known.waiting + excluded.waiting,
            delivered = known.delivered + excluded.delivered,
            refused = known.refused + excluded.refused,
            dead = known.dead + excluded.dead,
            waiting_bytes = known.waiting_bytes + excluded.waiting_bytes,
            given_up_bytes = known.given_up_bytes + excluded.given_up_bytes
    )
    SELECT count(*) INTO folded FROM gone;
    RETURN folded;
END
$$;

INSERT INTO delivery_counts
SELECT tenant_id, count(*), count(*) FILTER (WHERE status IN ('queued', 'failing', 'held')), count(*) FILTER (WHERE status = 'delivered'),
       count(*) FILTER (WHERE status = 'refused'), count(*) FILTER (WHERE status = 'dead'), 0, 0
FROM delivery_jobs GROUP BY tenant_id;
