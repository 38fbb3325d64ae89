"""Distinguishes an outage of a server from a function's own failure."""

from types import TracebackType

import asyncpg

from runtime.errors import NoAnswer, Unavailable
from runtime.resource.postgres import outage


def is_outage(failure: BaseException) -> bool:
    """Whether `failure` means that NATS or PostgreSQL is unavailable, so no message is the cause.

    A refused or broken connection counts when the PostgreSQL driver raised it; the same error of
    another connection of a function is the function's failure.
    """
    if isinstance(failure, Unavailable):
        return not isinstance(failure, NoAnswer)
    if isinstance(
        failure, asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError
    ):
        return outage(failure) is not None
    return isinstance(failure, OSError) and _raised_by_driver(failure.__traceback__)


def _raised_by_driver(trace: TracebackType | None) -> bool:
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("asyncpg."):
            return True
        trace = trace.tb_next
    return False
