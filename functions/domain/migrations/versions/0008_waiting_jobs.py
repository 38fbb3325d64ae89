"""Names the first state of a job `waiting`, and keeps the subject on which it is published."""

from functions.domain.migrations import execute_sql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Change the table and its triggers."""
    execute_sql(__file__)
