"""Tells messages that came in a device's session from others, so that a change of door shows."""

from functions.domain.migrations import execute_sql

revision = "0040"
down_revision = "0039"


def upgrade() -> None:
    """Add the columns."""
    execute_sql(__file__)
