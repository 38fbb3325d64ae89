"""How many delivery jobs a tenant has in which state, from counters in the database."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor

REFUSED_LETTER_BYTES, DEAD_LETTER_BYTES = 1_000, 2_000
"""What a refused and a dead job's letter take beside the job: headers, and of a dead one the trace
of its last failure. The statements that set `delivery_jobs.size_bytes` add as much."""

_QUERIES = read_queries(Path(__file__).with_name("delivery_counts.sql"))


@dataclass(frozen=True, slots=True)
class DeliveryCounts:
    """Jobs by state, at one moment: `jobs` is the sum of the other four numbers of jobs.

    Attributes:
        jobs: all jobs in the delivery log, which keeps those that ended for `keep_days`.
        waiting: made and not tried, to be tried again, or held while their route is paused.
        delivered: accepted by their destination.
        refused: refused for good, by an attempt or when they were made.
        dead: given up after their last attempt.
        waiting_bytes: size of the waiting ones.
        given_up_bytes: size of the refused and dead ones that are kept, with their dead letters.
    """

    jobs: int = 0
    waiting: int = 0
    delivered: int = 0
    refused: int = 0
    dead: int = 0
    waiting_bytes: int = 0
    given_up_bytes: int = 0


async def counts_of_tenants(
    executor: Executor, tenants: Iterable[str]
) -> dict[str, DeliveryCounts]:
    """The counts of each of the tenants that has jobs."""
    rows = await executor.fetch(_QUERIES["of_tenants"], sorted(tenants))
    return {tenant_id: DeliveryCounts(*counts) for tenant_id, *counts in rows}


async def counts_of_all(executor: Executor) -> DeliveryCounts:
    """The sums over all tenants."""
    [row] = await executor.fetch(_QUERIES["of_all"])
    return DeliveryCounts(*row)


__all__ = ["DeliveryCounts", "counts_of_all", "counts_of_tenants"]
