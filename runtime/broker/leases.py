"""Leases: at most one host at a time holds the right to a task, by compare-and-set on a stream.

The stream `LEASES` keeps one record for each lease, on `leases.{name}`. A record is written on the
condition that the record before it is still the last, so of several hosts that write at once
exactly one succeeds.
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from runtime.broker import stored
from runtime.broker.connection import ApiError, Broker
from runtime.broker.subscription import Subscription
from runtime.errors import PublishFailed, Unavailable, Unsendable
from runtime.manifest.model import Manifest, StreamSpec
from runtime.message import Message
from runtime.observe.logs import get_logger

log = get_logger("runtime.lease")

LEASES = "LEASES"
LOOK_S = 1.0
RENEWALS = 4
"""Renewals within the time to live of a lease."""
SAFE_SHARE = 0.75
"""Share of the time to live after which a holder that could not renew the lease gives it up: before
any other host may take it, with some room for clocks that run at different speeds."""
_TRY_AGAIN_S = 0.5

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The last record of a lease.

    Attributes:
        sequence: the record's sequence, which the next record must name; 0 before the first record.
        holder: the host that holds the lease; empty when no host does.
        state: data of the holder for its successor.
    """

    sequence: int
    holder: str = ""
    state: dict[str, Any] | None = None


def with_leases(manifest: Manifest) -> Manifest:
    """The manifest with the stream of leases added, if a function needs a lease."""
    if not any(spec.ordered_by for spec in manifest.functions.values()):
        return manifest
    replicas = max((spec.replicas for spec in manifest.streams.values()), default=1)
    stream = StreamSpec(
        subjects=("leases.>",),
        max_msgs_per_subject=1,
        description="which host works on an ordered function",
    )
    if replicas > 1:
        stream = stream.model_copy(update={"replicas": replicas})
    return manifest.model_copy(update={"streams": {**manifest.streams, LEASES: stream}})


class LeaseBook:
    """Reads and writes the records of one lease."""

    def __init__(self, broker: Broker, name: str) -> None:
        self._broker = broker
        self._subject = f"leases.{name}"

    async def read(self) -> LeaseRecord:
        """The last record.

        Raises:
            Unavailable: JetStream does not answer.
        """
        found = await stored.last(self._broker, LEASES, self._subject)
        return _parse(found) if found is not None else LeaseRecord(0)

    async def write(self, holder: str, state: dict[str, Any], after: int) -> int | None:
        """Write a record that follows the record `after`; return its sequence.

        Return None when another record has followed `after` already.

        Raises:
            PublishFailed, Unavailable: it is not known whether the record was written.
        """
        payload = json.dumps({"holder": holder, "state": state}).encode()
        headers = {"Nats-Expected-Last-Subject-Sequence": str(after)}
        try:
            ack = await self._broker.publish(self._subject, payload, headers=headers)
        except Unsendable as refusal:
            raise PublishFailed(self._subject, refusal.reason) from refusal
        except PublishFailed:
            found = await self.read()
            if found.sequence == after:
                raise
            # The lost message may be the confirmation, of this record or of one before.
            return found.sequence if holder and found.holder == holder else None
        return ack.sequence

    async def watch(self, callback: Callable[[Message], Awaitable[None] | None]) -> Subscription:
        """Call `callback` for each record that any host writes.

        Raises:
            Unavailable: the connection is closed.
        """
        return await self._broker.subscribe(self._subject, callback)


def _parse(found: Message) -> LeaseRecord:
    content = json.loads(found.data)
    return LeaseRecord(found.sequence, content["holder"], content["state"])


class Lease:
    """Takes a lease, renews it, and gives it back.

    Clocks of hosts are never compared: a host that wants a lease waits until it has seen no new
    record for the whole time to live, by its own clock.

    Args:
        book: the lease's records.
        ttl_s: time to live of the lease without a renewal.
        state: returns the data for a successor; called at each renewal.
    """

    def __init__(self, book: LeaseBook, ttl_s: float, state: Callable[[], State]) -> None:
        self._book = book
        self._ttl_s = ttl_s
        self._state = state
        self._holder = secrets.token_hex(8)
        self._sequence = 0
        self._renewed_at_s = 0.0
        self._lost = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        self._time = asyncio.get_running_loop().time

    @property
    def is_held(self) -> bool:
        """Whether this host holds the lease now."""
        return bool(self._sequence) and not self._lost.is_set()

    async def take(self) -> LeaseRecord:
        """Wait until this host holds the lease; return the record of the holder before.

        The record's `holder` is empty when that holder gave the lease back.
        """
        subscription = None
        seen, since_s = LeaseRecord(-1), 0.0
        try:
            while True:
                try:
                    if subscription is None:
                        subscription = await self._book.watch(lambda _: self._moved.set())
                    self._moved.clear()
                    found = await self._book.read()
                    if found.sequence != seen.sequence:
                        seen, since_s = found, self._time()
                    free = found.holder in {"", self._holder}
                    if free or self._time() - since_s >= self._ttl_s:
                        if await self._try_to_its_end(found):
                            return found
                        continue
                except (ApiError, PublishFailed, Unavailable) as failure:
                    log.debug("The lease cannot be read", reason=str(failure))
                    since_s = self._time()
                await self._wait_for_move()
        finally:
            if subscription is not None:
                await subscription.unsubscribe()

    async def wait_until_lost(self) -> None:
        """Return when another host may hold the lease."""
        await self._lost.wait()

    async def keep(self) -> None:
        """Renew the lease until it is lost."""
        while not self._lost.is_set():
            try:
                async with asyncio.timeout(self._ttl_s / RENEWALS):
                    await self._lost.wait()
            except TimeoutError:
                await self.renew()

    async def renew(self) -> None:
        """Write the current state; return when it is written, or the lease is lost.

        Callers that come during a write share one write after it.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._writing), name="lease")
        await asyncio.shield(self._next)

    async def give_back(self) -> None:
        """Release the lease, so that another host can take it at once."""
        if not self.is_held:
            return
        await self.stop()
        try:
            while await self._book.write("", self._state(), self._sequence) is None:
                # The cancelled renewal may have been written.
                found = await self._book.read()
                if found.holder != self._holder:
                    break
                self._sequence = found.sequence
        except (ApiError, PublishFailed, Unavailable) as failure:
            log.debug("The lease was not given back and will expire", reason=str(failure))
        self._sequence = 0

    async def stop(self) -> None:
        """Write nothing any more."""
        tasks = [task for task in (self._writing, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writing = self._next = None

    async def _try_to_its_end(self, found: LeaseRecord) -> bool:
        """As `_try`; when cancelled, first learn whether the lease must be given back."""
        trying = asyncio.create_task(self._try(found), name="lease")
        try:
            return await asyncio.shield(trying)
        except asyncio.CancelledError:
            await asyncio.gather(trying, return_exceptions=True)
            raise

    async def _try(self, found: LeaseRecord) -> bool:
        began_s = self._time()
        sequence = await self._book.write(self._holder, found.state or {}, found.sequence)
        if sequence is None:
            return False
        self._sequence, self._renewed_at_s = sequence, began_s
        self._lost.clear()
        return True

    async def _wait_for_move(self) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._moved.wait()
        except TimeoutError:
            return

    async def _after(self, writing: "asyncio.Task[None] | None") -> None:
        """Write after the write before has ended: its state may be older than the caller's."""
        if writing is not None:
            await asyncio.gather(writing, return_exceptions=True)
        self._writing, self._next = self._next, None
        await self._write()

    async def _write(self) -> None:
        try:
            async with asyncio.timeout_at(self._renewed_at_s + self._ttl_s * SAFE_SHARE):
                await self._write_until_written()
        except TimeoutError:
            log.warning("The lease could not be renewed in time")
            self._lost.set()

    async def _write_until_written(self) -> None:
        while not self._lost.is_set():
            began_s = self._time()
            try:
                sequence = await self._book.write(self._holder, self._state(), self._sequence)
            except (ApiError, PublishFailed, Unavailable) as failure:
                log.debug("The lease is not renewed yet", reason=str(failure))
                await asyncio.sleep(_TRY_AGAIN_S)
                continue
            if sequence is None:
                log.warning("Another host has taken the lease")
                self._lost.set()
                return
            self._sequence, self._renewed_at_s = sequence, began_s
            return
