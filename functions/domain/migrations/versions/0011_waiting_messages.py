"""An index of the messages that wait to be sent."""

from functions.domain.migrations import execute_sql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Create the index."""
    execute_sql(__file__)
