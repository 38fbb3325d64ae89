"""Replays of messages from quarantine."""

from functions.domain.migrations import execute_sql

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    """Create the table and the columns."""
    execute_sql(__file__)
