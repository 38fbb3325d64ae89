-- The newest attempts of all tenants: without it their page sorts the whole log.
CREATE INDEX delivery_attempts_by_time ON delivery_attempts (started_at DESC);
