"""Claim codes, tokens that overlap, numbers of devices, and the erasure of tenants."""

from functions.domain.migrations import execute_sql

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    """Add them."""
    execute_sql(__file__)
