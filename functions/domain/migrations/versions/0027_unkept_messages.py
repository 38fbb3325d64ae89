"""Places of refused messages that quarantine had no room for."""

from functions.domain.migrations import execute_sql

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    """Create the table."""
    execute_sql(__file__)
