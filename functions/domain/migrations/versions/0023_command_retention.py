"""Indexes for the retention and the bounds of commands."""

from functions.domain.migrations import execute_sql

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """Create the indexes."""
    execute_sql(__file__)
