"""The NATS layer: the connection, JetStream and micro services. Nothing else imports `nats`."""
