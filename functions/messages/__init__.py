"""Text messages, email and webhooks: accepted by HTTP or NATS, sent by providers, with a status."""
