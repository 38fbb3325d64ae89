"""Workers of an ordered function's leader that make calls on the standbys."""

import asyncio
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from runtime.binding.consumer import ConsumerBinding
from runtime.binding.crash_isolation import CrashIsolation
from runtime.binding.ordered.remote_call import call_headers, decode_outcome
from runtime.binding.ordered.standby import BEAT_S, subject_of
from runtime.binding.worker import Worker
from runtime.broker.connection import Broker
from runtime.broker.mailbox import Mailbox
from runtime.broker.subscription import Subscription
from runtime.dispatch import Dispatcher, Outcome
from runtime.errors import NoAnswer, RuntimeFault, Unavailable
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.subjects import is_name
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.remote_workers")

SILENT_S = 3.5
"""After this long without an announcement a standby gets no more calls."""
ANSWER_LATE_S = 5.0
"""How much later than the function's time limit an answer may come."""
CANCEL_LIMIT_S = 2.0
MOST_PEERS = 1000
MOST_SLOTS = 10_000
"""Bounds of an announcement: a client that may publish on the subject can announce anything."""


class CallFailed(Exception):  # noqa: N818 - names what happened
    """A call on another host ended without a known outcome."""


@dataclass(slots=True, eq=False)
class Peer:
    """A standby, and the worker whose tasks each make one call on it at a time.

    Attributes:
        calling: the tasks that wait for an answer.
        is_lost: whether its answers are no longer awaited.
    """

    id: str
    heard_at_s: float
    worker: Worker
    calling: set["asyncio.Task[Any]"] = field(default_factory=set)
    is_lost: bool = False


class RemoteWorkers:
    """Adds workers to a leader's binding, one for each free place on the standbys.

    Args:
        work: the leader's binding.
        dispatcher: makes a call on this host when it cannot be made on the standby.
        crash_isolation: makes the calls that may kill their process, on this host.
        broker: the connection.
        mailbox: tells which messages the server accepts.
        lost_after_s: a standby that was silent for this long has failed its calls, just as a silent
            host's messages are redelivered.
    """

    def __init__(
        self,
        work: ConsumerBinding,
        dispatcher: Dispatcher,
        crash_isolation: CrashIsolation,
        broker: Broker,
        mailbox: Mailbox,
        *,
        lost_after_s: float,
    ) -> None:
        self._work = work
        self._dispatcher = dispatcher
        self._crash_isolation = crash_isolation
        self._broker = broker
        self._mailbox = mailbox
        self._lost_after_s = lost_after_s
        self._function = dispatcher.function.name
        self._limit_s = dispatcher.function.spec.timeout + ANSWER_LATE_S
        self._id = secrets.token_hex(8)
        self._peers: dict[str, Peer] = {}
        self._subscription: Subscription | None = None
        self._beating = SupervisedTask(self._beat, f"leader {self._function}")
        self._time = asyncio.get_running_loop().time

    async def start(self) -> None:
        """Subscribe to the standbys' announcements, and announce this leader.

        Raises:
            Unavailable: the connection is closed.
        """
        subject = subject_of(self._function, "standbys")
        self._work.before_giving_back = self.stop
        self._subscription = await self._broker.subscribe(subject, self._on_standby)
        self._beating.start()

    async def stop(self) -> None:
        """Make no more remote calls, and cancel those that still run."""
        await self._beating.stop()
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None
        busy = [peer for peer in self._peers.values() if not peer.is_lost]
        await asyncio.gather(*(self._cancel(peer) for peer in busy))
        self._peers.clear()

    async def _beat(self) -> None:
        while True:
            try:
                subject = subject_of(self._function, "leader")
                await self._broker.publish_core(subject, self._id.encode())
            except Unavailable:
                log.debug("The leader's announcement was not sent", function=self._function)
            for peer in list(self._peers.values()):
                self._look_at(peer)
            await asyncio.sleep(BEAT_S)

    def _look_at(self, peer: Peer) -> None:
        silent_s = self._time() - peer.heard_at_s
        if silent_s > SILENT_S:
            peer.worker.stop()
        if silent_s > self._lost_after_s:
            log.warning("A host that helped is silent, its calls failed", function=self._function)
            peer.is_lost = True
            for task in peer.calling:
                task.cancel()
        if peer.worker.is_stopped and not peer.calling:
            del self._peers[peer.id]

    def _on_standby(self, message: Message) -> None:
        standby, slots = _read_announcement(message.data)
        peer = self._peers.get(standby)
        if peer is not None:
            peer.heard_at_s = self._time()
            if not slots:
                peer.worker.stop()
        elif slots and len(self._peers) < MOST_PEERS:
            self._take_on(standby, slots)

    def _take_on(self, standby: str, slots: int) -> None:
        async def run_event(message: Message) -> Outcome:
            return await self._call(peer, message)

        peer = Peer(standby, self._time(), Worker(run_event))
        self._peers[standby] = peer
        for _ in range(slots):
            self._work.add_worker(peer.worker)
        log.debug("Another host helps with an ordered function", function=self._function)

    async def _call(self, peer: Peer, message: Message) -> Outcome:
        there = not peer.worker.is_stopped and not self._crash_isolation.is_candidate(message)
        if there and self._mailbox.fits(message, self._function):
            outcome = await self._ask(peer, message)
            if outcome is not None:
                return outcome
        return await self._crash_isolation.run_event(message)

    async def _ask(self, peer: Peer, message: Message) -> Outcome | None:
        """The outcome of a remote call; None when it was not made, or not finished."""
        task = asyncio.current_task()
        if task is None:
            return None
        peer.calling.add(task)
        try:
            answer = await self._broker.request(
                subject_of(self._function, f"call.{peer.id}"),
                message.data,
                timeout_s=self._limit_s,
                headers=call_headers(message, self._function, self._id),
            )
            return decode_outcome(answer.data)
        except NoAnswer as silence:
            if silence.reason == "no responders":
                return None
            # The call may have run, and may still run: it counts as an attempt.
            return self._dispatcher.judge(message, silence)
        except (RuntimeFault, ValueError, KeyError) as failure:
            return self._dispatcher.judge(message, CallFailed(str(failure)))
        except asyncio.CancelledError:
            if not peer.is_lost or task.uncancel():
                raise
            return self._dispatcher.judge(message, CallFailed("the host that ran it is silent"))
        finally:
            peer.calling.discard(task)

    async def _cancel(self, peer: Peer) -> None:
        subject = subject_of(self._function, f"cancel.{peer.id}")
        try:
            await self._broker.request(subject, self._id.encode(), timeout_s=CANCEL_LIMIT_S)
        except Unavailable:
            log.debug("A standby does not answer, it will cancel its calls by itself")


def _read_announcement(data: bytes) -> tuple[str, int]:
    """A standby's id and its number of concurrent calls; 0 calls for an invalid announcement."""
    try:
        said = json.loads(data)
        standby, slots = str(said["id"]), int(said["slots"])
    except (ValueError, KeyError, TypeError):
        return "", 0
    # The id becomes part of a subject.
    return (standby, min(slots, MOST_SLOTS)) if is_name(standby) and slots >= 0 else ("", 0)
