"""Tells who waits for a device's commands that there is one."""

from functions.domain.migrations import execute_sql

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    """Add the trigger."""
    execute_sql(__file__)
