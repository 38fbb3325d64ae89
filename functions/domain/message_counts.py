"""What became of devices' messages, by tenant, from counters in the database.

Every message that is judged counts once in `received` and once in one of the other numbers, in the
transaction of its effect: whatever is rolled back was not counted. A message counts for the tenant
in its subject, because NATS permissions can restrict the subject, and for nobody else whatever it
says inside. Messages of tenants that do not exist count together, for tenant `UNKNOWN`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor, tenant_of_subject
from runtime import Message

_QUERIES = read_queries(Path(__file__).with_name("message_counts.sql"))

UNKNOWN = ""
"""The tenant for which messages of tenants that do not exist count."""


@dataclass(frozen=True, slots=True)
class MessageCounts:
    """Messages at one moment: `received` is the sum of the other four.

    Attributes:
        received: messages that were judged; one that is delivered again counts again.
        written: became a telemetry row, an answered request about a shadow, or an answer to a
            command.
        quarantined: refused and in quarantine. One that was replayed counts as what became of it.
        refused: refused and counted only: quarantine had no room for it.
        duplicate: delivered again after they were settled.
    """

    received: int = 0
    written: int = 0
    quarantined: int = 0
    refused: int = 0
    duplicate: int = 0


async def count_settled(
    executor: Executor, written: Mapping[str, int], duplicate: Mapping[str, int]
) -> None:
    """Count messages that were written, or settled before, by the tenants in their subjects.

    Refused messages are counted by `quarantine_many`.
    """
    tenants = sorted(written.keys() | duplicate.keys())
    await executor.execute(
        _QUERIES["add"],
        tenants,
        [written.get(tenant, 0) for tenant in tenants],
        [duplicate.get(tenant, 0) for tenant in tenants],
    )


async def count_written(executor: Executor, message: Message) -> None:
    """Count one message that was written."""
    await count_settled(executor, {tenant_of_subject(message.subject): 1}, {})


async def count_duplicate(executor: Executor, message: Message) -> None:
    """Count one delivery of a message that was settled before."""
    await count_settled(executor, {}, {tenant_of_subject(message.subject): 1})


def by_tenant(messages: Iterable[Message]) -> dict[str, int]:
    """The number of messages of each tenant in the subjects."""
    found: dict[str, int] = {}
    for message in messages:
        tenant_id = tenant_of_subject(message.subject)
        found[tenant_id] = found.get(tenant_id, 0) + 1
    return found


async def counts_of_tenant(executor: Executor, tenant_id: str) -> MessageCounts:
    """The counts of one tenant, or of `UNKNOWN`."""
    [row] = await executor.fetch(_QUERIES["of_tenant"], tenant_id)
    return MessageCounts(*row)


async def counts_of_all(executor: Executor) -> MessageCounts:
    """The sums over all tenants, and those that do not exist."""
    [row] = await executor.fetch(_QUERIES["of_all"])
    return MessageCounts(*row)


async def fold_counts(executor: Executor) -> int:
    """Add up the changes of the counters; the number of changes, 0 while another host does it."""
    folded: int = await executor.fetchval(_QUERIES["fold"])
    return folded


__all__ = [
    "UNKNOWN",
    "MessageCounts",
    "by_tenant",
    "count_duplicate",
    "count_settled",
    "count_written",
    "counts_of_all",
    "counts_of_tenant",
    "fold_counts",
]
