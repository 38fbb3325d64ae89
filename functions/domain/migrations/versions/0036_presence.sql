-- Whether devices are online. `functions/presence` decides; see docs/decisions/0030-presence.md.

ALTER TABLE device_registry
    -- After this time without a message the device is offline, even if its session is open. NULL: an open session
    -- counts, and without one the installation's timeout.
    ADD COLUMN presence_timeout_s integer CHECK (presence_timeout_s BETWEEN 15 AND 31536000);

-- One row for each device that was ever seen.
CREATE TABLE device_presence (
    tenant_id        tenant_name NOT NULL,
    device_id        device_name NOT NULL,
    status           text        NOT NULL DEFAULT 'offline' CHECK (status IN ('online', 'offline')),
    -- of the last transition; NULL while there was none
    reason           text        CHECK (reason IN ('connected', 'seen', 'disconnected', 'server_lost', 'silent')),
    changed_at       timestamptz,
    -- number of transitions so far
    transitions      bigint      NOT NULL DEFAULT 0,
    -- at most a minute behind the newest row of telemetry
    last_seen_at     timestamptz,
    -- when the last of the device's sessions ended
    session_ended_at timestamptz,
    -- when silence may have lasted too long; NULL while only the end of a session can change the status
    check_at         timestamptz,
    PRIMARY KEY (tenant_id, device_id),
    FOREIGN KEY (tenant_id, device_id) REFERENCES device_registry ON DELETE CASCADE
-- Room for a new version of a row beside the old one, so that `last_seen_at` changes without a change of an index.
) WITH (fillfactor = 70);
CREATE INDEX device_presence_status ON device_presence (tenant_id, status, device_id);
CREATE INDEX device_presence_due ON device_presence (check_at) WHERE check_at IS NOT NULL;

-- When a device was last seen, to the newest row of telemetry: what is noted of it is a minute behind at most.
CREATE FUNCTION seen_of(tenant text, device text, noted_at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT greatest(noted_at, (
        SELECT max(time) FROM telemetry
        WHERE telemetry.tenant_id = tenant AND telemetry.device_id = device
          AND time > noted_at AND time <= noted_at + interval '2 minutes'
    ))
$$;

-- Connections of devices to MQTT listeners. An ended one is kept for minutes: an event or a listing that is older than
-- its end must not open it again.
CREATE TABLE device_sessions (
    server_id     text        NOT NULL CHECK (length(server_id) <= 64),
    connection_id bigint      NOT NULL,
    tenant_id     tenant_name NOT NULL,
    device_id     device_name NOT NULL,
    -- by the server's clock
    started_at    timestamptz NOT NULL,
    ended_at      timestamptz,
    -- by this clock: a listing that was asked for later has the session, if it is open
    noted_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (server_id, connection_id),
    FOREIGN KEY (tenant_id, device_id) REFERENCES device_presence ON DELETE CASCADE
);
CREATE INDEX device_sessions_device ON device_sessions (tenant_id, device_id);
CREATE INDEX device_sessions_ended ON device_sessions (ended_at) WHERE ended_at IS NOT NULL;

-- The last transitions of each device: number n takes the place of number n - 32.
CREATE TABLE device_presence_events (
    tenant_id    tenant_name NOT NULL,
    device_id    device_name NOT NULL,
    place        smallint    NOT NULL CHECK (place BETWEEN 0 AND 31),
    number       bigint      NOT NULL,
    status       text        NOT NULL,
    reason       text        NOT NULL,
    at           timestamptz NOT NULL,
    last_seen_at timestamptz,
    PRIMARY KEY (tenant_id, device_id, place),
    FOREIGN KEY (tenant_id, device_id) REFERENCES device_presence ON DELETE CASCADE
);

-- Devices that have sent something, as those note it who take messages, in the transaction of a message's effect.
-- `watch_presence` takes rows within a second. Every writer adds rows of its own, and nobody waits for another.
CREATE TABLE device_activity (
    tenant_id  text        NOT NULL,
    device_ids text[]      NOT NULL,
    seen_at    timestamptz[] NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000);

-- Of the one function that watches. While it has not run for a day, nobody notes activity: nobody would take it.
CREATE TABLE presence_watch (
    only_row      boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    watched_until timestamptz NOT NULL,
    -- seconds without a message after which a device without a session is offline
    timeout_s     integer     NOT NULL CHECK (timeout_s BETWEEN 15 AND 31536000),
    -- when the newest comparison of all sessions with the servers began, and the newest one that was completed
    comparing_since timestamptz,
    compared_at     timestamptz
);
