"""Gives a device several shadows, and notes every request about them."""

from functions.domain.migrations import execute_sql

revision = "0034"
down_revision = "0033"


def upgrade() -> None:
    """Change the tables."""
    execute_sql(__file__)
