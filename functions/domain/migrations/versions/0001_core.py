"""Tenants, subscriptions, devices, telemetry, quarantine and routes."""

from functions.domain.migrations import execute_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    execute_sql(__file__)
