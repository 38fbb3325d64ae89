"""Types of destinations, and encrypted secrets of routes."""

from functions.domain.migrations import execute_sql

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Create the table and the column."""
    execute_sql(__file__)
