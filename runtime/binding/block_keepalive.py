"""What the host says to NATS while a function blocks the event loop."""

import time

from runtime.binding.in_progress import InProgressTicker
from runtime.broker.connection import Broker
from runtime.broker.settler import IN_PROGRESS


class BlockKeepalive:
    """Does from another thread what the loop owes the server: PONG and `+WPI`.

    So a block costs neither the connection nor the messages that are here, in one case excepted:
    they go to other hosts when the function at work stands still for longer than its time limit,
    as they would if it were cancelled.

    Args:
        broker: the connection.
        ticker: knows what is here.
    """

    def __init__(self, broker: Broker, ticker: InProgressTicker) -> None:
        self._broker = broker
        self._ticker = ticker

    def act(self, *, is_at_work: bool) -> None:
        """Be heard by the server once; a few times a second keeps everything.

        Args:
            is_at_work: whether a function is, and within its time limit.
        """
        signs: list[tuple[str, bytes]] = []
        if is_at_work:
            due = self._ticker.due(time.monotonic())
            signs += [(message.reply, IN_PROGRESS) for message in due]
        self._broker.keep_alive(signs)
