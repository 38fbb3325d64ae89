-- A job is found by the message in its id, and sent again in the order in which jobs were made.
ALTER TABLE delivery_jobs DROP COLUMN stored_at;
DROP INDEX delivery_jobs_undelivered, delivery_jobs_held;

-- A job's id begins with the stream, sequence and time (ns) of its message; a telemetry row knows the time in µs.
CREATE INDEX delivery_jobs_by_message
    ON delivery_jobs (tenant_id, route_id, split_part(job_id, '-', 2), left(split_part(job_id, '-', 3), 16));
CREATE INDEX delivery_jobs_undelivered ON delivery_jobs (tenant_id, route_id, first_attempt_at, job_id)
    WHERE status <> 'delivered';
CREATE INDEX delivery_jobs_held ON delivery_jobs (tenant_id, route_id, first_attempt_at, job_id)
    WHERE status = 'held';

ALTER TABLE delivery_replays
    -- jobs that cannot be sent again, since nothing has their message any more
    ADD COLUMN lost bigint NOT NULL DEFAULT 0;
