"""Readers of polled routes, and the bytes that wait for them."""

from functions.domain.migrations import execute_sql

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Create the tables."""
    execute_sql(__file__)
