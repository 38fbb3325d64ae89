"""Lets commands be sent again, in order, and under ids that are a device's own."""

from functions.domain.migrations import execute_sql

revision = "0030"
down_revision = "0029"


def upgrade() -> None:
    """Change the tables of commands and of their answers."""
    execute_sql(__file__)
