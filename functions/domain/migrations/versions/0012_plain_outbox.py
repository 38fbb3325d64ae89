"""Takes a column from the outbox that nothing needs."""

from functions.domain.migrations import execute_sql

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Change the table."""
    execute_sql(__file__)
