-- Commands that ended are removed by age; how many of a tenant have not ended is bounded.
CREATE INDEX device_commands_ended ON device_commands (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX device_commands_open ON device_commands (tenant_id) WHERE finished_at IS NULL;
