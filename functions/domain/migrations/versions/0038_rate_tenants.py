"""Says whose rate a row is about, so that erasing a tenant finds it."""

from functions.domain.migrations import execute_sql

revision = "0038"
down_revision = "0037"


def upgrade() -> None:
    """Add the column."""
    execute_sql(__file__)
