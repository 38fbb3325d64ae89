"""Contents of messages that are read as they were accepted."""

from functions.domain.migrations import execute_sql

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Change the column."""
    execute_sql(__file__)
