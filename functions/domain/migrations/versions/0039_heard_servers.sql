-- nats-servers that answered a host. One that no host has heard is gone, and the sessions of devices with it; one host that
-- does not hear it may itself be cut off.
CREATE TABLE presence_servers (
    server_id text        PRIMARY KEY CHECK (length(server_id) <= 64),
    heard_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- its sessions were ended for its silence: if it answers again, they are compared
    is_lost   boolean     NOT NULL DEFAULT false
);
