"""Delivery attempts by time."""

from functions.domain.migrations import execute_sql

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Make the index."""
    execute_sql(__file__)
