"""Finds commands whose time is up by an index."""

from functions.domain.migrations import execute_sql

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    """Add the column, and the trigger that sets it."""
    execute_sql(__file__)
