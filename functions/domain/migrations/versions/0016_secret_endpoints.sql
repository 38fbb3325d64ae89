-- As before, and a destination whose secrets have changed may be another endpoint too: a URL may be a secret.
CREATE OR REPLACE FUNCTION keep_route_life() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.is_enabled AND NOT OLD.is_enabled THEN
        NEW.disabled_at := NULL;
        NEW.disabled_reason := NULL;
        UPDATE endpoint_health
        SET failing_since = NULL, failures = 0, clock_started_at = NULL, told_percent = 0, disabled_at = NULL
        WHERE tenant_id = OLD.tenant_id AND endpoint = OLD.endpoint
          AND (failing_since IS NOT NULL OR told_percent > 0 OR disabled_at IS NOT NULL);
    END IF;
    IF NEW.destination_config IS DISTINCT FROM OLD.destination_config
       OR NEW.destination_secrets IS DISTINCT FROM OLD.destination_secrets THEN
        NEW.endpoint := NULL;
    END IF;
    RETURN NEW;
END
$$;
