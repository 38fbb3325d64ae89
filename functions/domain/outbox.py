"""Jobs and messages that are committed with the rows they belong to, and published afterwards.

A caller adds them in its own transaction; `hand_over_jobs` publishes them within milliseconds of
the commit, or as soon as their stream takes them. So a full or absent stream delays a job, and
neither loses it nor stops its maker.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from functions.domain.named_sql import read_queries

_QUERIES = read_queries(Path(__file__).with_name("outbox.sql"))

CHANNEL = "delivery_outbox"
"""PostgreSQL's notification channel on which every transaction that adds something is announced."""
REPEATED_HEADER = "Delivery-Repeated"
"""Header of a job that may be in its stream already: seconds to wait for the other copy."""


class Connection(Protocol):
    """A connection, inside of the caller's transaction."""

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement."""


class NewJob(NamedTuple):
    """A job to make.

    Attributes:
        tenant_id: the tenant.
        job_id: the job's id; of one tenant and id there is one job for ever.
        route_id: the route.
        destination_type: the route's type.
        content: the message, as JSON.
        refusal: the reason code of a job that is refused at once; None for a job to deliver. The
            function of its type makes a dead letter of it.
        subject: where the job is published; None: it only counts.
    """

    tenant_id: str
    job_id: str
    route_id: str
    destination_type: str
    content: bytes
    refusal: str | None
    subject: str | None


class NewMessage(NamedTuple):
    """A message to send that is no job.

    Attributes:
        queue: messages of one queue are published in the order of their making, and one that its
            stream does not take holds up its own queue alone: a tenant's id, `/` and what it is
            for. The id alone is the queue of the tenant's jobs.
        subject: where it is published; a stream must have the subject.
        msg_id: the stream drops a second message of this id.
        body: the payload.
    """

    queue: str
    subject: str
    msg_id: str
    body: bytes


async def add_jobs(connection: Connection, jobs: Sequence[NewJob]) -> None:
    """Make those of the jobs that do not exist yet, and queue them for their stream.

    Args:
        connection: inside of the transaction whose commit makes the jobs.
        jobs: in the order in which each tenant's are to be published.

    Raises:
        asyncpg.DeadlockDetectedError: another transaction makes the same jobs; try again.
    """
    if jobs:
        await connection.execute(_QUERIES["add_jobs"], *map(list, zip(*jobs, strict=True)))


async def add_messages(connection: Connection, messages: Sequence[NewMessage]) -> None:
    """Queue messages that are no jobs, such as those to devices.

    Args:
        connection: inside of the transaction whose commit sends the messages.
        messages: in the order in which those of a queue are to be published.
    """
    if messages:
        await connection.execute(_QUERIES["add_messages"], *map(list, zip(*messages, strict=True)))


async def add_message(
    connection: Connection, queue: str, subject: str, body: bytes, *, msg_id: str
) -> None:
    """Queue one message; see `NewMessage`."""
    await add_messages(connection, [NewMessage(queue, subject, msg_id, body)])


__all__ = [
    "CHANNEL",
    "REPEATED_HEADER",
    "Connection",
    "NewJob",
    "NewMessage",
    "add_jobs",
    "add_message",
    "add_messages",
]
