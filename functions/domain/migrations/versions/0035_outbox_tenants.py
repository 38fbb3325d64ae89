"""Says whose a row of the outbox is, so that erasing a tenant finds it."""

from functions.domain.migrations import execute_sql

revision = "0035"
down_revision = "0034"


def upgrade() -> None:
    """Add the column."""
    execute_sql(__file__)
