"""An index of the messages whose result nobody knows."""

from functions.domain.migrations import execute_sql

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the index."""
    execute_sql(__file__)
