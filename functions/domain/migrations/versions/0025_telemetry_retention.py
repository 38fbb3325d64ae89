"""Retention of telemetry for each tenant."""

from functions.domain.migrations import execute_sql

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    """Add the columns, and what tells how far rows are removed."""
    execute_sql(__file__)
