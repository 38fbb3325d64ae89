"""Copies of messages from quarantine, which are sent on their subjects once more.

A copy has the original's bytes, and a header that names the message in quarantine and the replay.
Whoever takes the copy judges it as a message of now, and in one transaction with its effect says
what became of it: accepted, and the message in quarantine is marked as replayed; or refused again,
and it stays with the new reason. The row in quarantine is locked meanwhile, so one message is
accepted once, however many copies of it are on their way, and never both accepted and in
quarantine. A copy whose message does not wait for it is a duplicate.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from functions.domain.message_counts import count_duplicate
from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor, Refusal, quarantine, storable
from runtime import Message

_QUERIES = read_queries(Path(__file__).with_name("quarantine_replays.sql"))

HEADER = "Quarantine-Replay"
"""Header of a copy: the number of the message in quarantine, a space, the id of the replay."""

_COPY = re.compile(r"([0-9]{1,18}) ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NS_PER_US = 1000
_US_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a message from quarantine.

    Attributes:
        quarantine_id: the message in quarantine.
        replay_id: the replay that sent the copy.
        is_open: whether the message waits for this copy.
        original: the message as it was stored first, with its stream, sequence and time: what it
            becomes is keyed by them.
        present: the message as it was stored this time. It is judged as a message of now, since
            what was wrong was mended after the original came.

    Both say that they may be repeated: a device's rate is not charged for a replay.
    """

    quarantine_id: int
    replay_id: UUID
    is_open: bool
    original: Message
    present: Message


def copy_header(quarantine_id: int, replay_id: UUID) -> dict[str, str]:
    """The headers of a copy."""
    return {HEADER: f"{quarantine_id} {replay_id}"}


async def find_copies(executor: Executor, messages: Iterable[Message]) -> dict[Message, Copy]:
    """Those of the messages that are copies of messages in quarantine.

    A header that anybody can write is not believed: a message with other bytes than the one in
    quarantine that it names, or on another subject, is a message like any other.
    """
    named = [(each, found) for each in messages if (found := _read_header(each)) is not None]
    if not named:
        return {}
    rows = await executor.fetch(
        _QUERIES["find"],
        [quarantine_id for _, (quarantine_id, _) in named],
        [replay_id for _, (_, replay_id) in named],
        [storable(message.subject) for message, _ in named],
        [message.data for message, _ in named],
    )
    copies: dict[Message, Copy] = {}
    for row in rows:
        message, _ = named[row["place"] - 1]
        present = replace(message, called_before=True)
        original = replace(
            present,
            stream=row["stream"],
            sequence=row["sequence"],
            stored_at_ns=_ns(row["stored_at"]),
        )
        names = (row["quarantine_id"], row["replay_id"])
        copies[message] = Copy(*names, row["is_open"], original, present)
    return copies


async def find_copy(executor: Executor, message: Message) -> Copy | None:
    """The copy that the message is; None for a message that is no copy."""
    return (await find_copies(executor, [message])).get(message)


async def lock_open(executor: Executor, copies: Sequence[Copy]) -> set[int]:
    """Lock the messages that wait for these copies until the transaction ends; which they are."""
    rows = await executor.fetch(_QUERIES["lock"], *_names(copies))
    return {row["quarantine_id"] for row in rows}


async def accept_copies(executor: Executor, copies: Sequence[Copy]) -> None:
    """Mark the messages of accepted copies as replayed; the caller counts what they became.

    Call it in the transaction that has locked them.
    """
    if copies:
        await executor.execute(_QUERIES["accept"], *_names(copies))


async def refuse_copies(executor: Executor, refused: Sequence[tuple[Copy, Refusal]]) -> int:
    """Leave the messages of refused copies in quarantine, with the new reasons.

    Returns:
        How many messages waited for these copies.
    """
    if not refused:
        return 0
    rows = await executor.fetch(
        _QUERIES["refuse_again"],
        *_names([copy for copy, _ in refused]),
        [storable(refusal.reason) for _, refusal in refused],
        [storable(refusal.detail) for _, refusal in refused],
    )
    return len(rows)


async def refuse_message(
    executor: Executor, message: Message, refusal: Refusal, copy: Copy | None
) -> Mapping[str, int]:
    """Put a refused message into quarantine; one that comes from there stays there.

    Returns:
        As `quarantine`.
    """
    if copy is None:
        return await quarantine(executor, message, refusal)
    if not await refuse_copies(executor, [(copy, refusal)]):
        await count_duplicate(executor, message)
    return {}


def _names(copies: Sequence[Copy]) -> tuple[list[int], list[UUID]]:
    return [copy.quarantine_id for copy in copies], [copy.replay_id for copy in copies]


def _read_header(message: Message) -> tuple[int, UUID] | None:
    header = message.headers.get(HEADER)
    if header is None or (found := _COPY.fullmatch(header)) is None:
        return None
    return int(found[1]), UUID(found[2])


def _ns(time: datetime) -> int:
    since = time - _EPOCH
    seconds = since.days * 86_400 + since.seconds
    return (seconds * _US_PER_S + since.microseconds) * _NS_PER_US


__all__ = [
    "HEADER",
    "Copy",
    "accept_copies",
    "copy_header",
    "find_copies",
    "find_copy",
    "lock_open",
    "refuse_copies",
    "refuse_message",
]
