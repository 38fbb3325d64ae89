"""Adds the time at which a device measured to its telemetry."""

from functions.domain.migrations import execute_sql

revision = "0034"
down_revision = "0028"


def upgrade() -> None:
    """Add the column, and an index of the rows that came late."""
    execute_sql(__file__)
