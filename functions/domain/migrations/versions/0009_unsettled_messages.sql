-- A look-up asks which other messages may be the one that the provider lists.

CREATE INDEX messages_unsettled ON messages (kind, tenant_id, message_id) WHERE status IN ('sending', 'unknown');
