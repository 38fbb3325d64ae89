"""Adds what processes tell each other of the rates that they limit."""

from functions.domain.migrations import execute_sql

revision = "0033"
down_revision = "0032"


def upgrade() -> None:
    """Add the tables."""
    execute_sql(__file__)
