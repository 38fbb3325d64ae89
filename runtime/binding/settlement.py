"""Acts on outcomes: the only place that settles a function's messages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from runtime.broker.dead_letters import DeadLetter, DeadLetters
from runtime.broker.mailbox import Mailbox
from runtime.broker.settler import Settler
from runtime.dispatch import Dead, Dispatcher, Done, Later, Outcome
from runtime.errors import PublishFailed, Unsendable
from runtime.message import Message
from runtime.observe.failures import FailureLogs
from runtime.observe.logs import get_logger
from runtime.observe.metrics import FunctionMetrics

log = get_logger("runtime.settlement")

RetryInPlace = Callable[[Message, float], None]
"""Delays a message in the buffer, for so many seconds, until its next attempt."""

PARK_FROM_S = 30.0
"""A shorter wait is a NAK with delay, which keeps an ack-pending slot but costs no publish."""
STORE_AGAIN_S = 5.0
"""How long a message waits whose dead-letter copy could not be stored."""


@dataclass(frozen=True, slots=True)
class SettlementBackends:
    """The broker and log objects that settling needs; one for each process."""

    settler: Settler
    dead_letters: DeadLetters
    mailbox: Mailbox
    failures: FailureLogs = field(default_factory=FailureLogs)


class Settlement:
    """Settles the messages of one function.

    Args:
        dispatcher: the function's.
        backends: the host's.
        metrics: the function's.
        retry_in_place: if given, a message that is tried again stays in the buffer unsettled. For
            an ordered function, because no message of its key may overtake it.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        backends: SettlementBackends,
        metrics: FunctionMetrics,
        retry_in_place: RetryInPlace | None = None,
    ) -> None:
        self._retry_in_place = retry_in_place
        self._backends = backends
        self._settler = backends.settler
        self._metrics = metrics
        function = dispatcher.function
        self._function = function.name
        self._failures = backends.failures.of(function.name, function.spec.retry.max_attempts)

    async def settle(self, message: Message, outcome: Outcome) -> bool:
        """Act on an outcome; return when nothing of it can be lost.

        Returns False when the message stays in the buffer, to be called again.
        """
        if isinstance(outcome, Done):
            self.ack(message)
            return True
        if isinstance(outcome, Later):
            return await self._later(message, outcome)
        return await self._bury(message, outcome)

    def ack(self, message: Message) -> None:
        """Acknowledge a done message."""
        self._settler.ack(message)
        self._metrics.count("acked")

    def ack_all(self, messages: Sequence[Message]) -> None:
        """Acknowledge done messages."""
        self._settler.ack_all(messages)
        self._metrics.count("acked", len(messages))

    def ack_repeats(self, messages: Sequence[Message]) -> None:
        """Acknowledge repeats: another delivery of each message was acknowledged."""
        self._settler.ack_all(messages)
        self._metrics.count("repeated", len(messages))

    def ack_moved(self, messages: Sequence[Message]) -> None:
        """Acknowledge messages whose copies are stored in the mailbox."""
        self._settler.ack_all(messages)

    def give_back(self, message: Message) -> None:
        """Nak a message that was not called, so that another host gets it at once."""
        self._settler.nak(message, 0)

    def refuse(self, message: Message) -> None:
        """Nak a message that could not be admitted, with a delay."""
        self._settler.nak(message, STORE_AGAIN_S)

    async def hand_over(self, message: Message, delay_s: float = 0.0) -> None:
        """Hand an unfinished message over, so that no attempt is used up.

        JetStream counts each delivery, also one after a NAK; a copy in the mailbox does not count
        this one.

        Args:
            message: the message.
            delay_s: the rest of the wait for its next attempt.
        """
        try:
            await self._backends.mailbox.hand_over(message, self._function, delay_s)
        except (PublishFailed, Unsendable):
            self.give_back(message)
        else:
            self.ack_moved([message])

    def retry_later(
        self, message: Message, delay_s: float = STORE_AGAIN_S, *, counts: bool = True
    ) -> bool:
        """Try the message again after a delay; return False when it stays in the buffer."""
        self._metrics.count("retried")
        if self._retry_in_place is None:
            self._settler.nak(message, delay_s)
            return True
        message.attempt += counts
        self._retry_in_place(message, delay_s)
        return False

    async def _later(self, message: Message, later: Later) -> bool:
        self._failures.failed(message, later)
        is_parked = self._retry_in_place is None and (
            later.delay_s >= PARK_FROM_S or not later.counts or later.is_beyond
        )
        if is_parked and await self._park(message, later):
            return True
        return self.retry_later(message, later.delay_s, counts=later.counts)

    async def _park(self, message: Message, later: Later) -> bool:
        """Store a copy in the mailbox, which says how many attempts were made."""
        mailbox, delay_s = self._backends.mailbox, later.delay_s
        try:
            if mailbox.supports_parking:
                reason, counts = later.reason, later.counts
                await mailbox.park(message, self._function, delay_s, reason, counts=counts)
            elif not later.counts:
                await mailbox.hand_over(message, self._function, delay_s)
            else:
                return False
        except (PublishFailed, Unsendable) as failure:
            self._log_of(message).warning(
                "Parking failed, the message waits in its stream", reason=failure.reason
            )
            return False
        self.ack_moved([message])
        self._metrics.count("parked")
        return True

    async def _bury(self, message: Message, dead: Dead) -> bool:
        letter = DeadLetter(
            function=self._function,
            message=message,
            code=dead.code,
            reason=dead.reason,
            error_type=dead.error_type,
            traceback=dead.traceback,
            attempts=message.attempt,
            failed_at=datetime.now(UTC),
        )
        try:
            await self._backends.dead_letters.store(letter)
        except (PublishFailed, Unsendable) as failure:
            self._log_of(message).error(
                "Dead letter not stored, the message stays", reason=failure.reason
            )
            return self.retry_later(message)
        self._settler.term(message, f"{dead.code}: {dead.reason}")
        self._metrics.count("dead")
        self._metrics.count_dead_letter(dead.code)
        self._failures.given_up(message, dead)
        return True

    def _log_of(self, message: Message) -> structlog.stdlib.BoundLogger:
        return log.bind(
            function=self._function,
            stream=message.stream,
            sequence=message.sequence,
            attempt=message.attempt,
        )


MakeSettlement = Callable[
    [Dispatcher, SettlementBackends, FunctionMetrics, RetryInPlace | None], Settlement
]
"""Builds the settlement of a function; `Settlement`, unless a test observes it."""
