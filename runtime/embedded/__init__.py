"""Embedded nats-server and PostgreSQL, for hosts without addresses of running servers."""
