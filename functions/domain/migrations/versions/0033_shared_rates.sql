-- What processes that limit the same keys tell each other. Unlogged: after a crash of the server everybody begins anew,
-- which is as if nobody had taken anything.
CREATE UNLOGGED TABLE rate_arrivals (
    -- the group of processes
    sharing    text        NOT NULL,
    -- which bucket of which device or tenant
    key        text        NOT NULL,
    -- theoretical arrival time of the generic cell rate algorithm, ns since 1970
    arrival_ns bigint      NOT NULL,
    -- by how much the last use moved it
    added_ns   bigint      NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sharing, key)
) WITH (fillfactor = 50);

CREATE UNLOGGED TABLE rate_sharers (
    sharing text        NOT NULL,
    sharer  text        NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sharing, sharer)
);
