"""Adds the time at which a device measured, and replays of telemetry of every type."""

from functions.domain.migrations import execute_sql

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    """Add the column, an index of the rows that came late, and the function."""
    execute_sql(__file__)
