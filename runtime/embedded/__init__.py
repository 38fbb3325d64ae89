"""nats-server and PostgreSQL as part of the host, for whoever has none running."""

from runtime.embedded.servers import EmbeddedServers

__all__ = ["EmbeddedServers"]
