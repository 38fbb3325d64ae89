-- Routes that are polled: their readers, and the bytes that tenants have had stored.

CREATE TABLE poll_readers (
    route_id   uuid        NOT NULL REFERENCES message_routes ON DELETE CASCADE,
    name       text        NOT NULL CHECK (name ~ '^[A-Za-z0-9_-]{1,32}$'),
    -- +1 with each move; part of the name of the reader's consumer
    generation integer     NOT NULL DEFAULT 1,
    moved_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (route_id, name)
);

CREATE TABLE poll_bytes (
    tenant_id text   NOT NULL,
    day       date   NOT NULL,
    bytes     bigint NOT NULL,
    PRIMARY KEY (tenant_id, day)
);
