"""Partitions for imported telemetry."""

from functions.domain.migrations import execute_sql

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    """Create the function."""
    execute_sql(__file__)
