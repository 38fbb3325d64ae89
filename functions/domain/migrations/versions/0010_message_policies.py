"""Provider accounts, quiet hours and rates of messages."""

from functions.domain.migrations import execute_sql

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Create the tables."""
    execute_sql(__file__)
