"""nats-server and PostgreSQL as part of the host, for whoever has none running."""
