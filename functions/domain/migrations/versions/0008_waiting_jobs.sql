-- waiting: made or sent again, and not tried since. A job that is sent again goes to the subject on which it came, which
-- may hold its order key.
ALTER TABLE delivery_jobs DROP CONSTRAINT delivery_jobs_status_check;
ALTER TABLE delivery_jobs DISABLE TRIGGER delivery_jobs_moved; -- Both names count as waiting.
UPDATE delivery_jobs SET status = 'waiting' WHERE status = 'queued';
ALTER TABLE delivery_jobs ENABLE TRIGGER delivery_jobs_moved;
ALTER TABLE delivery_jobs
    ADD CONSTRAINT delivery_jobs_status_check
        CHECK (status IN ('waiting', 'failing', 'held', 'delivered', 'refused', 'dead')),
    ADD COLUMN subject text;

CREATE OR REPLACE FUNCTION count_delivery_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO delivery_count_changes
        SELECT tenant_id, count(*), count(*) FILTER (WHERE status IN ('waiting', 'failing', 'held')),
               count(*) FILTER (WHERE status = 'delivered'), count(*) FILTER (WHERE status = 'refused'),
               count(*) FILTER (WHERE status = 'dead'),
               coalesce(sum(size_bytes) FILTER (WHERE status IN ('waiting', 'failing', 'held')), 0),
               coalesce(sum(size_bytes) FILTER (WHERE status IN ('refused', 'dead')), 0)
        FROM new_rows GROUP BY tenant_id;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO delivery_count_changes
        SELECT tenant_id, -count(*), -count(*) FILTER (WHERE status IN ('waiting', 'failing', 'held')),
               -count(*) FILTER (WHERE status = 'delivered'), -count(*) FILTER (WHERE status = 'refused'),
               -count(*) FILTER (WHERE status = 'dead'),
               -coalesce(sum(size_bytes) FILTER (WHERE status IN ('waiting', 'failing', 'held')), 0),
               -coalesce(sum(size_bytes) FILTER (WHERE status IN ('refused', 'dead')), 0)
        FROM old_rows GROUP BY tenant_id;
    ELSE
        -- A failed attempt of a job that failed before changes no count.
        INSERT INTO delivery_count_changes
        SELECT * FROM (
            SELECT tenant_id, 0,
                   coalesce(sum(sign) FILTER (WHERE status IN ('waiting', 'failing', 'held')), 0) AS waiting,
                   coalesce(sum(sign) FILTER (WHERE status = 'delivered'), 0) AS delivered,
                   coalesce(sum(sign) FILTER (WHERE status = 'refused'), 0) AS refused,
                   coalesce(sum(sign) FILTER (WHERE status = 'dead'), 0) AS dead,
                   coalesce(sum(sign * size_bytes) FILTER (WHERE status IN ('waiting', 'failing', 'held')), 0) AS waiting_bytes,
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
