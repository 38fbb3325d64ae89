"""The rows of messages: accepted, claimed, advanced; concurrent callers share one statement."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson

from functions.domain.batching import Batcher
from functions.domain.named_sql import read_queries
from functions.messages.contents import Kind, OutMessage
from functions.messages.lifecycle import Status
from functions.messages.provider import Outcome

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))
_SETTLING = read_queries(Path(__file__).with_name("settling.sql"))

UNPUBLISHED_CHECK_S = 30.0
"""Seconds after which an accepted message that is not known to be in its queue is published."""

PUBLISHED_CHECK_S = 3600.0
LEASE_CHECK_S = 10.0


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to accept.

    Attributes:
        must_exist: whether the tenant must be registered and active.
    """

    message: OutMessage
    idempotency_key: str | None = None
    must_exist: bool = True

    @property
    def key(self) -> tuple[str, str]:
        """Two of one key are never stored by one statement."""
        return self.message.tenant_id, self.idempotency_key or self.message.message_id


@dataclass(frozen=True, slots=True)
class Claim:
    """A message for which an attempt is to begin."""

    message: OutMessage
    account: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class Transition:
    """A transition that was made."""

    tenant_id: str
    message_id: str
    kind: Kind
    status: Status
    number: int
    attempts: int
    free_attempts: int
    provider: str | None
    provider_id: str | None
    error_code: str | None
    created_at: datetime
    at: datetime


@dataclass(frozen=True, slots=True)
class Found:
    """A message's state."""

    kind: Kind
    fingerprint: bytes
    status: Status
    number: int
    attempts: int
    free_attempts: int
    provider: str | None
    provider_id: str | None
    created_at: datetime
    lease_left_s: float


@dataclass(frozen=True, slots=True)
class Due:
    """A message at which it is time to look.

    Attributes:
        checks: how often it was looked at in this status.
        began_at: when its newest attempt began.
        content: JSON.
        recipient: whom the message is for.
    """

    tenant_id: str
    message_id: str
    kind: Kind
    status: Status
    number: int
    attempts: int
    free_attempts: int
    checks: int
    provider: str | None
    provider_id: str | None
    stream_sequence: int | None
    created_at: datetime
    updated_at: datetime
    began_at: datetime | None
    content: str
    recipient: str


@dataclass(frozen=True, slots=True)
class Advance:
    """A wanted transition, in the order of the statement's parameters.

    Attributes:
        attempt: only while this attempt is the newest; None for any.
        leaves: the statuses that may be left, joined by commas.
        outcome: the attempt's result; None leaves its row alone.
        check_in_s: seconds until the row is looked at again; None for never.
        free_attempts: how many attempts do not count from now on; None for as many as before.
    """

    tenant_id: str
    message_id: str
    attempt: int | None
    status: Status
    leaves: str
    outcome: Outcome | None = None
    error_code: str | None = None
    reason: str | None = None
    status_code: int | None = None
    provider_id: str | None = None
    check_in_s: float | None = None
    free_attempts: int | None = None


# Not `astuple`, which copies each value deeply.
_VALUES = attrgetter(*(field.name for field in fields(Advance)))

_Key = tuple[str, str]


class MessageStore:
    """Reads and writes the rows of messages."""

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self._notes: set[asyncio.Task[None]] = set()
        self._accepts = Batcher(
            self._accept_all, key=lambda new: new.key, is_fault_of_data=_is_fault_of_data
        )
        self._claims = Batcher(
            self._claim_all,
            key=lambda claim: _key_of(claim.message),
            is_fault_of_data=_is_fault_of_data,
        )
        self._advances = Batcher(self._advance_all, key=_key_of, is_fault_of_data=_is_fault_of_data)
        self._announced = Batcher(
            self._mark_announced,
            key=lambda each: (each.tenant_id, each.message_id, each.number),
            is_fault_of_data=_is_fault_of_data,
        )
        self._published = Batcher(
            self._mark_published,
            key=lambda each: _key_of(each[0]),
            is_fault_of_data=_is_fault_of_data,
        )

        self._accepted = Batcher(
            self._mark_accepted,
            key=lambda each: _key_of(each[0]),
            is_fault_of_data=_is_fault_of_data,
        )

    async def accept(self, new: NewMessage) -> datetime | None:
        """Store a message as queued; the time, or None when it exists or its tenant may not."""
        return await self._accepts.add(new)

    async def claim(self, claim: Claim) -> Transition | None:
        """Begin an attempt; None when the message is not queued with this content."""
        return await self._claims.add(claim)

    async def advance(self, wanted: Advance) -> Transition | None:
        """Make a transition; None when the message's status does not allow it."""
        return await self._advances.add(wanted)

    async def find(self, tenant_id: str, message_id: str) -> Found | None:
        """A message's state; None when there is none."""
        row = await self.pool.fetchrow(_QUERIES["find"], tenant_id, message_id)
        return None if row is None else Found(*row)

    async def find_by_key(self, tenant_id: str, key: str) -> "asyncpg.Record | None":
        """The message that was accepted under an idempotency key."""
        return await self.pool.fetchrow(_QUERIES["find_by_key"], tenant_id, key)

    async def tenant_status(self, tenant_id: str) -> str | None:
        """The tenant's status; None when it is not registered."""
        status: str | None = await self.pool.fetchval(_QUERIES["tenant_status"], tenant_id)
        return status

    async def due(self, kind: Kind, statuses: Sequence[Status], limit: int) -> list[Due]:
        """Messages at which it is time to look, the longest due first."""
        rows = await self.pool.fetch(_SETTLING["due"], kind, list(statuses), limit)
        return [Due(*row) for row in rows]

    async def look_again(self, due: Due, pause_s: float | None) -> None:
        """Look at a message after a pause, or never, if it has not moved on meanwhile."""
        await self.pool.execute(
            _SETTLING["look_again"], due.tenant_id, due.message_id, due.number, pause_s
        )

    async def postpone(
        self, message: OutMessage, pause_s: float, *, code: str, reason: str
    ) -> bool:
        """Note why a queued message waits, and do not look at it before its time.

        Returns whether there is such a message.
        """
        found = await self.pool.fetchval(
            _SETTLING["postpone"], message.tenant_id, message.message_id, pause_s, code, reason
        )
        return found is not None

    async def known_provider_ids(self, provider_ids: Sequence[str]) -> set[str]:
        """Those of the provider's ids that belong to known messages."""
        rows = await self.pool.fetch(_SETTLING["known_provider_ids"], list(provider_ids))
        return {row["provider_id"] for row in rows}

    async def count_rivals(self, message: OutMessage) -> int:
        """How many other messages with this recipient and text have no known result either."""
        plain = message.content.plain()
        count: int = await self.pool.fetchval(
            _SETTLING["count_rivals"],
            message.kind,
            message.tenant_id,
            message.message_id,
            plain["to"],
            plain["body"],
        )
        return count

    async def mark_announced(self, transition: Transition) -> None:
        """Note that a transition stands on its status subject."""
        await self._announced.add(transition)

    async def mark_published(self, transition: Transition, sequence: int) -> None:
        """Note a queued message's place in its stream."""
        await self._published.add((transition, sequence))

    async def mark_accepted(self, transition: Transition, sequence: int) -> None:
        """Note that an accepted message stands in its stream, and its transition too."""
        await self._accepted.add((transition, sequence))

    def note(self, mark: Coroutine[Any, Any, None]) -> None:
        """Make a mark that nobody waits for: without it, `reconcile` publishes again what it marks.

        That is under the same message id, so that the stream stores it once.
        """
        task = asyncio.create_task(mark)
        self._notes.add(task)
        task.add_done_callback(self._end_note)

    def _end_note(self, task: "asyncio.Task[None]") -> None:
        self._notes.discard(task)
        if not task.cancelled():
            task.exception()  # Read, or asyncio logs it: the database's absence is told elsewhere.

    async def close(self) -> None:
        """Wait for what was begun."""
        await asyncio.gather(*self._notes, return_exceptions=True)
        await self._accepts.close()
        await self._claims.close()
        await self._advances.close()
        await self._announced.close()
        await self._published.close()
        await self._accepted.close()

    async def _accept_all(self, new: Sequence[NewMessage]) -> list[datetime | None]:
        rows = await self.pool.fetch(
            _QUERIES["accept"],
            [one.message.tenant_id for one in new],
            [one.message.message_id for one in new],
            [one.message.kind for one in new],
            [one.idempotency_key for one in new],
            [one.message.content.fingerprint() for one in new],
            [orjson.dumps(one.message.content.plain()).decode() for one in new],
            UNPUBLISHED_CHECK_S,
            [one.must_exist for one in new],
        )
        made = {(row["tenant_id"], row["message_id"]): row["created_at"] for row in rows}
        return [made.get(_key_of(one.message)) for one in new]

    async def _claim_all(self, claims: Sequence[Claim]) -> list[Transition | None]:
        ordered = sorted(claims, key=lambda claim: _key_of(claim.message))
        rows = await self.pool.fetch(
            _QUERIES["claim"],
            [each.message.tenant_id for each in ordered],
            [each.message.message_id for each in ordered],
            [each.message.content.fingerprint() for each in ordered],
            [each.account for each in ordered],
            [each.lease_s for each in ordered],
            LEASE_CHECK_S,
        )
        made = {
            (row["tenant_id"], row["message_id"]): _transition(
                {**row, "status": "sending", "provider_id": None, "error_code": None}
            )
            for row in rows
        }
        return [made.get(_key_of(each.message)) for each in claims]

    async def _advance_all(self, wanted: Sequence[Advance]) -> list[Transition | None]:
        # In the order of their keys: two hosts that lock the same rows shall not wait in a circle.
        columns = zip(*map(_VALUES, sorted(wanted, key=_key_of)), strict=True)
        rows = await self.pool.fetch(_QUERIES["advance"], *(list(each) for each in columns))
        made = {(row["tenant_id"], row["message_id"]): _transition(dict(row)) for row in rows}
        return [made.get(_key_of(each)) for each in wanted]

    async def _mark_announced(self, transitions: Sequence[Transition]) -> list[None]:
        ordered = sorted(transitions, key=_key_of)
        await self.pool.execute(
            _QUERIES["mark_announced"],
            [each.tenant_id for each in ordered],
            [each.message_id for each in ordered],
            [each.number for each in ordered],
        )
        return [None] * len(transitions)

    async def _mark_published(self, published: Sequence[tuple[Transition, int]]) -> list[None]:
        ordered = sorted(published, key=lambda each: _key_of(each[0]))
        await self.pool.execute(
            _QUERIES["mark_published"],
            [each.tenant_id for each, _ in ordered],
            [each.message_id for each, _ in ordered],
            [each.number for each, _ in ordered],
            [sequence for _, sequence in ordered],
            PUBLISHED_CHECK_S,
        )
        return [None] * len(published)

    async def _mark_accepted(self, published: Sequence[tuple[Transition, int]]) -> list[None]:
        await self._mark_published(published)
        await self._mark_announced([transition for transition, _ in published])
        return [None] * len(published)


def _key_of(each: Any) -> _Key:  # noqa: ANN401 - whatever names a message
    return each.tenant_id, each.message_id


def _transition(row: dict[str, Any]) -> Transition:
    at = row.pop("updated_at")
    return Transition(**row, at=at)


def _is_fault_of_data(failure: Exception) -> bool:
    return isinstance(failure, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError)


__all__ = ["Advance", "Claim", "Due", "Found", "MessageStore", "NewMessage", "Transition"]
