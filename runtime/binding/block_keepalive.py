"""Sends PONG and in-progress signals to NATS while a function blocks the event loop."""

import time

from runtime.binding.in_progress import InProgressTicker
from runtime.broker.connection import Broker
from runtime.broker.settler import IN_PROGRESS


class BlockKeepalive:
    """Sends PONG and `+WPI` from another thread, in place of the blocked event loop.

    So a block loses neither the connection nor the held messages, with one exception: when the
    running function blocks for longer than its time limit, the messages are redelivered to other
    hosts, as they would be if the call were cancelled.

    Args:
        broker: the connection.
        ticker: knows the held messages.
    """

    def __init__(self, broker: Broker, ticker: InProgressTicker) -> None:
        self._broker = broker
        self._ticker = ticker

    def act(self, *, is_at_work: bool) -> None:
        """Send the signals once; a few calls a second keep everything alive.

        Args:
            is_at_work: whether a function is running within its time limit.
        """
        signs: list[tuple[str, bytes]] = []
        if is_at_work:
            due = self._ticker.due(time.monotonic())
            signs += [(message.reply, IN_PROGRESS) for message in due]
        self._broker.keep_alive(signs)
