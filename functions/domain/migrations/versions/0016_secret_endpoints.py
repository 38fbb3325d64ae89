"""A route whose secrets change may lead to another endpoint."""

from functions.domain.migrations import execute_sql

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Replace the trigger's function."""
    execute_sql(__file__)
