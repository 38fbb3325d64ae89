-- Device shadows with what makes late updates harmless, and commands with every answer to them.

CREATE TABLE device_shadows (
    tenant_id text NOT NULL,
    device_id text NOT NULL,
    -- +1 with each accepted update; a deleted shadow keeps its row, so that its version goes on
    version bigint NOT NULL DEFAULT 0,
    desired jsonb NOT NULL DEFAULT '{}',
    reported jsonb NOT NULL DEFAULT '{}',
    -- per section and path, the stamp (ns since 1970) of the newest write: see functions/shadow/document.py
    desired_memory jsonb NOT NULL DEFAULT '{}',
    reported_memory jsonb NOT NULL DEFAULT '{}',
    -- where the newest applied message stands, to tell a late one from a new one
    last_sequence bigint NOT NULL DEFAULT 0,
    last_stored_at_ns bigint NOT NULL DEFAULT 0,
    last_stamp_ns bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    PRIMARY KEY (tenant_id, device_id),
    FOREIGN KEY (tenant_id, device_id) REFERENCES device_registry ON DELETE CASCADE
);

-- Which messages have been applied: a redelivery finds itself here and raises no version.
CREATE TABLE device_shadow_updates (
    tenant_id text NOT NULL,
    device_id text NOT NULL,
    stored_at_ns bigint NOT NULL,
    sequence bigint NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (tenant_id, device_id, stored_at_ns, sequence),
    FOREIGN KEY (tenant_id, device_id) REFERENCES device_shadows ON DELETE CASCADE
);

CREATE TABLE device_commands (
    command_id text PRIMARY KEY,
    tenant_id text NOT NULL,
    device_id text NOT NULL,
    name text NOT NULL,
    arguments jsonb NOT NULL DEFAULT '{}',
    status text NOT NULL DEFAULT 'queued' CHECK (status IN (
        'queued', 'sent', 'acked', 'succeeded', 'failed', 'rejected', 'expired', 'timed_out', 'cancelled'
    )),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- not sent by then: expired
    expires_at timestamptz NOT NULL,
    -- sent, and no final answer within this time: timed_out
    timeout_s integer NOT NULL CHECK (timeout_s > 0),
    sent_at timestamptz,
    acked_at timestamptz,
    finished_at timestamptz,
    result jsonb,
    FOREIGN KEY (tenant_id, device_id) REFERENCES device_registry ON DELETE CASCADE
);

CREATE INDEX device_commands_by_device
    ON device_commands (tenant_id, device_id, created_at DESC, command_id DESC);
CREATE INDEX device_commands_unsent ON device_commands (expires_at) WHERE status = 'queued';
CREATE INDEX device_commands_unanswered ON device_commands (sent_at) WHERE status IN ('sent', 'acked');

-- Every answer that a device gave, also those that came too late to count.
CREATE TABLE device_command_acks (
    command_id text NOT NULL REFERENCES device_commands ON DELETE CASCADE,
    stored_at_ns bigint NOT NULL,
    sequence bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('acked', 'succeeded', 'failed', 'rejected')),
    result jsonb,
    late_ack boolean NOT NULL,
    received_at timestamptz NOT NULL,
    PRIMARY KEY (command_id, stored_at_ns, sequence)
);
