-- What became of each delivery job, and of each attempt at it.

CREATE TABLE delivery_jobs (
    tenant_id text NOT NULL,
    job_id text NOT NULL,
    route_id text NOT NULL,
    destination_type text NOT NULL,
    -- failing: tried and to be tried again, or given up as a dead letter; refused: never to be tried again
    status text NOT NULL CHECK (status IN ('delivered', 'failing', 'refused')),
    attempts integer NOT NULL CHECK (attempts > 0),
    first_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_attempt_at timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    -- the tenant belongs to the key: what one tenant calls its jobs says nothing about another's
    PRIMARY KEY (tenant_id, job_id)
);

CREATE INDEX delivery_jobs_by_age ON delivery_jobs (last_attempt_at);

-- No route is referenced: the log outlives routes, and tells that a job's route is gone.
CREATE TABLE delivery_attempts (
    tenant_id text NOT NULL,
    job_id text NOT NULL,
    -- counted here from 1: a redriven job starts anew at the host, but not in this log
    attempt integer NOT NULL CHECK (attempt > 0),
    route_id text NOT NULL,
    destination_type text NOT NULL,
    started_at timestamptz NOT NULL,
    duration_ms integer NOT NULL CHECK (duration_ms >= 0),
    -- skipped: not tried, as the endpoint is being left alone for a while
    outcome text NOT NULL CHECK (outcome IN ('delivered', 'failed', 'refused', 'skipped')),
    status_code smallint,
    error_code text,
    response_excerpt text,
    UNIQUE (tenant_id, job_id, attempt),
    FOREIGN KEY (tenant_id, job_id) REFERENCES delivery_jobs ON DELETE CASCADE
);

CREATE INDEX delivery_attempts_by_tenant ON delivery_attempts (tenant_id, started_at DESC);
CREATE INDEX delivery_attempts_by_route ON delivery_attempts (tenant_id, route_id, started_at DESC);
