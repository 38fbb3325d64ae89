"""Keeps events of presence out of replays from quarantine."""

from functions.domain.migrations import execute_sql

revision = "0037"
down_revision = "0036"


def upgrade() -> None:
    """Replace the function."""
    execute_sql(__file__)
