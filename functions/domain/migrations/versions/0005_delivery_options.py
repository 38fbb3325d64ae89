"""Order key and delivery options of routes."""

from functions.domain.migrations import execute_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns."""
    execute_sql(__file__)
