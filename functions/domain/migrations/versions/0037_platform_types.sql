-- Whether a function judges messages on the subject, so that one from quarantine may be sent on it once more. Never what
-- the platform sends: `DOWNLINKS` of functions/domain/topics.py.
CREATE OR REPLACE FUNCTION is_judged(subject text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN split_part(subject, '.', 1) IN ('telemetry', 'shadow', 'commands')
    OR (subject ~ '^tenant\.[^.]+\.device\.[^.]+\.[a-z0-9_]{1,32}$'
        AND split_part(subject, '.', 5) NOT IN ('commands', 'routed', 'presence'));
