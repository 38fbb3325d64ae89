-- An accepted message is refused when too many of its tenant wait.

CREATE INDEX messages_waiting ON messages (tenant_id) WHERE status IN ('queued', 'sending');
