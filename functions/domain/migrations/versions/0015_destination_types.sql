-- Types of destinations, as their deliverers announce them, and the secrets of routes, encrypted.

CREATE TABLE destination_types (
    name         text        PRIMARY KEY CHECK (name ~ '^[a-z0-9_]{1,32}$'),
    -- JSON Schema of a route's destination_config; text, which keeps the order of keys
    schema       text        NOT NULL CHECK (octet_length(schema) <= 65536),
    announced_at timestamptz NOT NULL DEFAULT now(),
    -- a deliverer that runs says so every half minute
    last_seen_at timestamptz NOT NULL DEFAULT now()
);

-- The secrets of destination_config by their JSON pointers, encrypted. NULL: there are none, or the route is of a
-- time before this column, and has them in destination_config until `seal_destinations` has run.
ALTER TABLE message_routes ADD COLUMN destination_secrets bytea;
