"""Leases: which host does what only one host may do at a time.

The stream `LEASES` keeps one record for each lease, on `leases.{name}`. A record is written on the
condition that the one before it is still the last, so that of several hosts one succeeds, whatever
the others know or believe.
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
"""How often a lease is renewed in the time for which it holds."""
SAFE_SHARE = 0.75
"""The share of its time after which a holder that could not renew it gives it up by itself: before
any other may take it, whatever the two clocks differ by."""
_TRY_AGAIN_S = 0.5

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What the stream says of a lease.

    Attributes:
        sequence: the record's, which the next one must name; 0 where there is none yet.
        holder: who holds it; empty when nobody does.
        state: what the holder has left for its successor.
    """

    sequence: int
    holder: str = ""
    state: dict[str, Any] | None = None


def with_leases(manifest: Manifest) -> Manifest:
    """The manifest with the stream of leases, if a function needs one."""
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
        """Write a record that follows the one with sequence `after`; its sequence.

        None when another one has followed that already.

        Raises:
            PublishFailed, Unavailable: it is not known whether it was written.
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
            # What was lost may be the confirmation, of this record or of one before.
            return found.sequence if holder and found.holder == holder else None
        return ack.sequence

    async def watch(self, callback: Callable[[Message], Awaitable[None] | None]) -> Subscription:
        """Have `callback` called when somebody writes a record.

        Raises:
            Unavailable: the connection is closed.
        """
        return await self._broker.subscribe(self._subject, callback)


def _parse(found: Message) -> LeaseRecord:
    content = json.loads(found.data)
    return LeaseRecord(found.sequence, content["holder"], content["state"])


class Lease:
    """Takes a lease, keeps it, and gives it back.

    No clock is compared with another's: who wants a lease waits until its record has not changed
    for the whole time, as seen from here.

    Args:
        book: the lease's records.
        ttl_s: how long it holds without being renewed.
        state: what to leave for a successor, asked for at each renewal.
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
        """Whether this host holds it now."""
        return bool(self._sequence) and not self._lost.is_set()

    async def take(self) -> LeaseRecord:
        """Return when this host holds it; the record of who held it before.

        Its `holder` is empty where that one gave it back.
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
                    log.debug("The lease is not looked at now", reason=str(failure))
                    since_s = self._time()
                await self._wait_for_move()
        finally:
            if subscription is not None:
                await subscription.unsubscribe()

    async def wait_until_lost(self) -> None:
        """Return when another host may hold it."""
        await self._lost.wait()

    async def keep(self) -> None:
        """Renew it until it is lost; returns then."""
        while not self._lost.is_set():
            try:
                async with asyncio.timeout(self._ttl_s / RENEWALS):
                    await self._lost.wait()
            except TimeoutError:
                await self.renew()

    async def renew(self) -> None:
        """Write the state as it is now; returns when it is written, or the lease is lost.

        However many ask meanwhile, one write serves all of them.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._writing), name="lease")
        await asyncio.shield(self._next)

    async def give_back(self) -> None:
        """Let another host have it at once."""
        if not self.is_held:
            return
        await self.stop()
        try:
            while await self._book.write("", self._state(), self._sequence) is None:
                # The renewal that was under way a moment ago may have been written.
                found = await self._book.read()
                if found.holder != self._holder:
                    break
                self._sequence = found.sequence
        except (ApiError, PublishFailed, Unavailable) as failure:
            log.debug("The lease is not given back, it ends by itself", reason=str(failure))
        self._sequence = 0

    async def stop(self) -> None:
        """Write nothing any more."""
        tasks = [task for task in (self._writing, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writing = self._next = None

    async def _try_to_its_end(self, found: LeaseRecord) -> bool:
        """As `_try`; cancelled, it knows all the same whether there is something to give back."""
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
        """Write once the write before is over: its state may be older than what is asked for."""
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
