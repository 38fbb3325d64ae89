"""Settlement that tells a test of each outcome, so that a host that serves pays nothing for it."""

from collections.abc import Callable, Sequence

from runtime.binding.settlement import RetryInPlace, Settlement, SettlementBackends
from runtime.dispatch import DONE, Dispatcher, Done, Outcome
from runtime.message import Message
from runtime.observe.metrics import FunctionMetrics

Observer = Callable[[str, Message, Outcome], None]
"""Is told of each outcome before it is settled: the function, the message, the outcome."""


class ObservedSettlement(Settlement):
    """A `Settlement` that tells an observer of each outcome."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        backends: SettlementBackends,
        metrics: FunctionMetrics,
        retry_in_place: RetryInPlace | None,
        *,
        observer: Observer,
    ) -> None:
        super().__init__(dispatcher, backends, metrics, retry_in_place)
        self._observer = observer

    async def settle(self, message: Message, outcome: Outcome) -> bool:
        """As `Settlement.settle`."""
        if not isinstance(outcome, Done):  # Which `ack` tells.
            self._observer(self._function, message, outcome)
        return await super().settle(message, outcome)

    def ack(self, message: Message) -> None:
        """As `Settlement.ack`."""
        self._observer(self._function, message, DONE)
        super().ack(message)

    def ack_all(self, messages: Sequence[Message]) -> None:
        """As `Settlement.ack_all`."""
        for message in messages:
            self._observer(self._function, message, DONE)
        super().ack_all(messages)
