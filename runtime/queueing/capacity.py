"""Chooses how many messages a buffer may hold, and the queue in which they wait. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from runtime.loader import Function
from runtime.queueing.fair_queue import FairQueue
from runtime.queueing.keys import key_of, no_key, priorities_of
from runtime.queueing.rate_limited_queue import RateLimitedQueue
from runtime.queueing.token_bucket import token_bucket_of

MAX_IN_FLIGHT = 8192
PREFETCH_S = 0.2
"""Messages are fetched ahead for this much time of work, as measured."""
RATE_WINDOW_S = 0.1
KEYED_WINDOW = 2048
"""How many messages are held when keys take turns, unless the manifest says."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The lowest and highest capacity of a function's buffer."""

    at_least: int
    at_most: int


class Capacity:
    """The number of messages that a buffer may hold, which follows the function's rate.

    It is the messages that may run at once, plus the messages that the function settles in
    `PREFETCH_S`. So a slow function holds few messages beyond its calls, and a fast one does not
    run out between two pulls.

    Args:
        at_least: the lowest capacity.
        at_most: the highest capacity.
        time: returns seconds of a monotonic clock.

    Attributes:
        messages: the capacity at this moment.
    """

    def __init__(self, at_least: int, at_most: int, time: Callable[[], float]) -> None:
        self.resize(at_least, at_most)
        self._settled = 0
        self._time = time
        self._window_from_s = time()

    def resize(self, at_least: int, at_most: int) -> None:
        """Change the bounds, and set the capacity to the lower bound."""
        self._at_least = self.messages = at_least
        self._at_most = max(at_least, at_most)

    def count_settled(self, messages: int) -> None:
        """Count settled messages; once in a while the capacity changes."""
        self._settled += messages
        now_s = self._time()
        elapsed_s = now_s - self._window_from_s
        if elapsed_s < RATE_WINDOW_S:
            return
        fitting = int(self._settled / elapsed_s * PREFETCH_S)
        wanted = min(self._at_most, self._at_least + fitting)
        # Move half way each time, so that one unusual window changes little.
        self.messages = max(self._at_least, (self.messages + wanted + 1) // 2)
        self._settled = 0
        self._window_from_s = now_s


def bounds_of(function: Function) -> Bounds:
    """The bounds of a function's buffer."""
    spec, size = function.spec, function.spec.batch.size
    pending = spec.consumer.max_ack_pending if spec.consumer else MAX_IN_FLIGHT
    at_least = size * (spec.concurrency + 1) if function.shape == "batch" else spec.concurrency
    if not spec.has_turns:
        at_most = min(spec.max_in_flight or MAX_IN_FLIGHT, pending)
        return Bounds(min(at_least, at_most), at_most)
    # Half for the stream and half for the mailbox. The full capacity from the start, because the
    # queue chooses among the held messages.
    window = min(spec.max_in_flight or max(KEYED_WINDOW, 2 * at_least), pending)
    half = max(1, window // 2)
    return Bounds(half, half)


def queue_of(
    function: Function, processes: int, time: Callable[[], float]
) -> FairQueue | RateLimitedQueue | None:
    """The queue of a function whose messages have keys or a rate; None for other functions.

    Args:
        function: the function.
        processes: number of processes that share its rate.
        time: returns seconds of a monotonic clock.
    """
    spec = function.spec
    # An ordered function is led by one process of one host.
    share = 1 if spec.ordered_by else processes
    token_bucket = None if spec.rate is None else token_bucket_of(spec.rate, share, time)
    if not spec.has_turns:
        return None if token_bucket is None else RateLimitedQueue(token_bucket)
    fair_key = no_key if spec.fairness is None else key_of(spec.fairness)
    # Batches are made of all keys in turn, and with an order a key has one call anyway.
    has_share = function.shape == "event" and (spec.fair_by or not spec.ordered_by)
    places = spec.concurrency if has_share else None
    if spec.ordered_by is not None:
        order_key = fair_key if spec.fair_by is None else key_of(spec.ordered_by)
        return FairQueue(fair_key, order_key=order_key, places=places, token_bucket=token_bucket)
    priorities = None if spec.priority_by is None else priorities_of(spec.priority_by)
    return FairQueue(fair_key, places=places, token_bucket=token_bucket, priorities=priorities)
