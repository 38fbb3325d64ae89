"""Workers of an ordered function's leader that make calls on the standbys."""

from functools import partial

from runtime.binding.consumer import ConsumerBinding, SharedServices
from runtime.binding.crash_isolation import CrashIsolation
from runtime.binding.ordered.remote_call import call_headers, decode_outcome
from runtime.binding.worker import Worker
from runtime.broker.remote_calls import CallClient, Peer
from runtime.dispatch import Dispatcher, Outcome
from runtime.errors import NoAnswer, RuntimeFault
from runtime.message import Message

ANSWER_LATE_S = 5.0
"""How much later than the function's time limit an answer may come."""


class CallFailed(Exception):  # noqa: N818 - names what happened
    """A call on another host ended without a known outcome."""


class RemoteWorkers:
    """Adds workers to a leader's binding, one for each call that the standbys can make.

    Args:
        work: the leader's binding.
        dispatcher: judges a call that failed on the way.
        crash_isolation: makes the calls that may kill their process, on this host.
        shared: the host's.
        lost_after_s: a standby that was silent for this long has failed its calls, just as a silent
            host's messages are redelivered.
    """

    def __init__(
        self,
        work: ConsumerBinding,
        dispatcher: Dispatcher,
        crash_isolation: CrashIsolation,
        shared: SharedServices,
        *,
        lost_after_s: float,
    ) -> None:
        self._work = work
        self._dispatcher = dispatcher
        self._crash_isolation = crash_isolation
        self._mailbox = shared.backends.mailbox
        self._function = dispatcher.function.name
        self._client = CallClient(shared.broker, self._function, lost_after_s, self._on_peer)
        self._workers: dict[Peer, Worker] = {}

    async def start(self) -> None:
        """Find the standbys.

        Raises:
            Unavailable: the connection is closed.
        """
        self._work.before_giving_back = self._client.stop
        await self._client.start()

    def _on_peer(self, peer: Peer) -> None:
        if worker := self._workers.pop(peer, None):
            self._work.workers.stop_worker(worker)
        if peer.slots:
            worker = self._workers[peer] = Worker(partial(self._call, peer))
            for _ in range(peer.slots):
                self._work.workers.add_worker(worker)
        queue = self._work.fair_queue
        if queue is not None and queue.places is not None:
            # The share of a fair key is one of all calls, here and there.
            own = self._dispatcher.function.spec.concurrency
            queue.places = own + sum(each.slots for each in self._workers)

    async def _call(self, peer: Peer, message: Message) -> Outcome:
        """Call the function on a standby, or here when the standby cannot make the call."""
        is_candidate = self._crash_isolation.is_candidate(message)
        if peer.slots and not is_candidate and self._mailbox.fits(message, self._function):
            outcome = await self._ask(peer, message)
            if outcome is not None:
                return outcome
        return await self._crash_isolation.run_event(message)

    async def _ask(self, peer: Peer, message: Message) -> Outcome | None:
        """The outcome of a remote call; None when it was not made, or not finished."""
        headers = call_headers(message, self._function)
        limit_s = self._dispatcher.function.spec.timeout + ANSWER_LATE_S
        try:
            answer = await self._client.call(peer, message.data, headers, timeout_s=limit_s)
            return decode_outcome(answer)
        except NoAnswer as silence:
            if silence.reason == "no responders":
                return None
            # The call may have run, and may still run: it counts as an attempt.
            return self._dispatcher.judge(message, silence)
        except (RuntimeFault, ValueError) as failure:
            return self._dispatcher.judge(message, CallFailed(str(failure)))
