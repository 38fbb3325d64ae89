-- Refused messages that are sent through the same functions once more, after what was wrong was mended.

ALTER TABLE quarantine_events
    -- 'replaying': a copy is on its way, which replay_id names; 'replayed': the copy was accepted
    ADD COLUMN status text NOT NULL DEFAULT 'quarantined' CHECK (status IN ('quarantined', 'replaying', 'replayed')),
    -- the last replay that took the message, whatever became of it
    ADD COLUMN replay_id uuid,
    -- when that replay sent the copy, and later, when the copy was judged
    ADD COLUMN replayed_at timestamptz,
    ADD COLUMN replays integer NOT NULL DEFAULT 0;
CREATE INDEX quarantine_events_replay ON quarantine_events (replay_id, quarantine_id) WHERE replay_id IS NOT NULL;

CREATE TABLE quarantine_replays (
    -- the caller's, or made by the API: the same request twice is one replay. Each copy carries it.
    replay_id     uuid        PRIMARY KEY,
    -- which messages: all that are given must fit
    quarantine_id bigint,
    tenant_id     text,
    device_id     text,
    reason        text,
    since         timestamptz,
    -- what is refused later is not part of the replay
    until         timestamptz NOT NULL,
    rate_per_s    integer     NOT NULL CHECK (rate_per_s BETWEEN 1 AND 1000),
    status        text        NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'cancelled', 'done')),
    -- the last message that was sent
    cursor        bigint      NOT NULL DEFAULT 0,
    -- messages when the replay was asked for
    found         bigint      NOT NULL,
    sent          bigint      NOT NULL DEFAULT 0,
    -- messages that NATS accepts no copy of
    unsendable    bigint      NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL DEFAULT now(),
    run_at        timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz
);
CREATE INDEX quarantine_replays_running ON quarantine_replays (run_at) WHERE status = 'running';
CREATE INDEX quarantine_replays_newest ON quarantine_replays (created_at DESC, replay_id DESC);
