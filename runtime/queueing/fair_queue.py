"""Round-robin queue by fair key, with an order inside each order key if a function has one.

A function without keys has a plain `deque`: first come, first served. `FairQueue` has the same
methods, and a queue for each key. No I/O, and no clock.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtime.message import Message
from runtime.queueing.keys import Priorities
from runtime.queueing.token_bucket import TokenBucket
from runtime.queueing.weighted_round import WeightedRound

Key = Callable[[Message], str]

ROOM_SHARE = 4
"""Share of the calls that one fair key leaves to the others."""


class ReadyQueue(Protocol):
    """The queue operations that the buffer needs; a `deque` has all of them."""

    def append(self, message: Message, /) -> object:
        """Add the message; true when it is blocked behind a failed message of its key."""

    def popleft(self) -> Message:
        """Remove the next message.

        Raises:
            IndexError: there is no message, or none may be taken now.
        """

    def __getitem__(self, place: int, /) -> Message:
        """The message that `popleft` would return, for place 0."""

    def __len__(self) -> int:
        """The number of messages that can be taken one after the other."""


@dataclass(slots=True, eq=False)
class _KeyQueue:
    """The messages of one order key; without an order, of a whole group.

    Attributes:
        is_busy: whether a message of the order key is in a call.
        delayed: failed messages of the key that wait for their next attempt; while there is one, no
            message of the key may be taken.
        is_listed: whether the queue is in its group's `listed`.
    """

    group: "_Group"
    key: str
    messages: deque[Message] = field(default_factory=deque)
    is_busy: bool = False
    delayed: int = 0
    is_listed: bool = False


@dataclass(slots=True, eq=False)
class _Group:
    """The queues of one fair key, which take turns among themselves.

    Attributes:
        listed: its queues from which a message may be taken, the next one first.
        running: messages taken and not released.
        waiting: messages in its queues.
        waiting_bytes: their size.
        is_scheduled: whether the group is in the round.
        is_capped: whether the group is among those that had as many calls as they may have.
    """

    key: str
    level: int
    queues: dict[str, _KeyQueue] = field(default_factory=dict)
    listed: deque[_KeyQueue] = field(default_factory=deque)
    running: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    is_scheduled: bool = False
    is_capped: bool = False


class FairQueue:
    """Round-robin queue by fair key; at most one message of an order key is taken at a time.

    Args:
        fair_key: returns the fair key; messages with the same key share a place in the round.
        order_key: if given, the messages of one order key are taken in the order of their
            sequences, each after the one before it was released.
        places: how many messages may be taken and not released because of the calls that there are;
            None if that bounds no key.
        token_bucket: if given, each message that is taken uses a token.
        priorities: if given, fair keys of different levels take turns by the weights of their
            levels. `fair_key` then returns keys that it made.

    Attributes:
        is_open: while False no message can be taken.
        most_out: the most messages of all keys that may be taken and not released; None for no
            limit.
        places: see above; may change.
        out: number of messages taken and not released.
    """

    def __init__(
        self,
        fair_key: Key,
        *,
        order_key: Key | None = None,
        places: int | None = None,
        token_bucket: TokenBucket | None = None,
        priorities: Priorities | None = None,
    ) -> None:
        self.fair_key = fair_key if priorities is None else priorities.add_to(fair_key)
        self.is_open = True
        self.most_out: int | None = None
        self.places = places
        self._order_key = order_key
        self._token_bucket = token_bucket
        self._groups: dict[str, _Group] = {}
        self._capped: deque[_Group] = deque()
        self._priorities = priorities
        self._round: deque[_Group] | WeightedRound[_Group] = (
            deque() if priorities is None else WeightedRound(priorities.weights)
        )
        self.out: dict[Message, _KeyQueue] = {}
        self._waiting = 0
        self._listed = 0

    def __bool__(self) -> bool:
        return self._may_take() and (self._token_bucket is None or self._token_bucket.count() > 0)

    def __len__(self) -> int:
        if not self._may_take():
            return 0
        count = self._waiting if self._order_key is None else self._listed
        if self.most_out is not None:
            count = min(count, self.most_out - len(self.out))
        return count if self._token_bucket is None else min(count, self._token_bucket.count())

    def __getitem__(self, place: int, /) -> Message:
        return self._round[place].listed[0].messages[0]

    def append(self, message: Message, /) -> bool:
        """Insert a message after those of its key that were stored before it.

        Returns whether the message is blocked: a message of its key waits for its next attempt.
        """
        queue = self._queue_of(message)
        _insert(queue.messages, message)
        queue.group.waiting += 1
        queue.group.waiting_bytes += message.size_bytes
        self._waiting += 1
        self._list(queue)
        return queue.delayed > 0

    def popleft(self) -> Message:
        """Remove the next message of the group whose turn it is.

        Raises:
            IndexError: there is none.
        """
        group = self._round.popleft()
        group.is_scheduled = False
        queue = group.listed.popleft()
        queue.is_listed = False
        self._listed -= 1
        message = queue.messages.popleft()
        if self._token_bucket is not None:
            self._token_bucket.take()
        self.out[message] = queue
        group.waiting -= 1
        group.waiting_bytes -= message.size_bytes
        group.running += 1
        self._waiting -= 1
        queue.is_busy = self._order_key is not None
        self._list(queue)
        self._schedule(group)
        if self.places is not None:
            self._cap_next()
        return message

    def release(self, message: Message) -> None:
        """Release a taken message, so that the next of its key may be taken."""
        queue = self.out.pop(message, None)
        if queue is not None:
            queue.group.running -= 1
            queue.is_busy = False
            self._list(queue)
            self._schedule(queue.group)
            self._forget(queue)
            if self._capped:
                self._look_at_capped()

    def delay(self, message: Message) -> Sequence[Message]:
        """Block the message's order key until `resume`.

        Args:
            message: a taken message, which is put back, or a waiting one.

        Returns:
            The messages that become blocked.
        """
        queue = self.out.pop(message, None)
        was_taken = queue is not None
        if queue is None:
            queue = self._queue_of(message)
        else:
            queue.group.running -= 1
            queue.is_busy = False
            _insert(queue.messages, message)
            queue.group.waiting += 1
            queue.group.waiting_bytes += message.size_bytes
            self._waiting += 1
            self._schedule(queue.group)
            if self._capped:
                self._look_at_capped()
        queue.delayed += 1
        if queue.delayed > 1:
            return (message,) if was_taken else ()
        self._unlist(queue)
        return tuple(queue.messages)

    def resume(self, message: Message) -> Sequence[Message]:
        """End a delay; return the messages that are no longer blocked."""
        queue = self._queue_of(message)
        queue.delayed -= 1
        if queue.delayed:
            return ()
        self._list(queue)
        return tuple(queue.messages)

    def next_in_s(self) -> float | None:
        """Seconds until a message that only lacks a token can be taken; None for never."""
        if self._token_bucket is None or not self._may_take():
            return None
        return self._token_bucket.next_in_s()

    def waiting_of(self, fair_key: str) -> int:
        """The number of waiting messages of a fair key."""
        group = self._groups.get(fair_key)
        return group.waiting if group is not None else 0

    def level_of(self, fair_key: str) -> int:
        """The level of a fair key; 0 without priorities."""
        return 0 if self._priorities is None else self._priorities.level_of(fair_key)

    @property
    def levels(self) -> int:
        """The number of levels; 1 without priorities."""
        return 1 if self._priorities is None else len(self._priorities.weights)

    def waiting_bytes_of(self, fair_key: str) -> int:
        """The size of the waiting messages of a fair key."""
        group = self._groups.get(fair_key)
        return group.waiting_bytes if group is not None else 0

    @property
    def is_ordered(self) -> bool:
        """Whether messages have an order key."""
        return self._order_key is not None

    @property
    def waiting(self) -> int:
        """The number of waiting messages, whether or not they may be taken."""
        return self._waiting

    @property
    def is_idle(self) -> bool:
        """Whether no message is taken, and none may be taken."""
        return not self.out and not self

    @property
    def groups(self) -> int:
        """The number of fair keys with messages."""
        return len(self._groups)

    def _may_take(self) -> bool:
        if not self._round or not self.is_open:
            return False
        return self.most_out is None or len(self.out) < self.most_out

    def _queue_of(self, message: Message) -> _KeyQueue:
        fair_key = self.fair_key(message)
        order_key = self._order_key(message) if self._order_key else ""
        group = self._groups.get(fair_key)
        if group is None:
            group = self._groups[fair_key] = _Group(fair_key, self.level_of(fair_key))
        queue = group.queues.get(order_key)
        if queue is None:
            queue = group.queues[order_key] = _KeyQueue(group, order_key)
        return queue

    def _list(self, queue: _KeyQueue) -> None:
        if queue.messages and not (queue.is_busy or queue.delayed or queue.is_listed):
            queue.is_listed = True
            queue.group.listed.append(queue)
            self._listed += 1
            self._schedule(queue.group)

    def _unlist(self, queue: _KeyQueue) -> None:
        if not queue.is_listed:
            return
        queue.is_listed = False
        self._listed -= 1
        group = queue.group
        group.listed.remove(queue)
        if not group.listed and group.is_scheduled:
            group.is_scheduled = False
            self._round.remove(group)

    def _schedule(self, group: _Group) -> None:
        if group.is_scheduled or not group.listed:
            return
        if self._may_run(group):
            group.is_scheduled = True
            self._round.append(group)
        else:
            self._cap(group)

    def _cap_next(self) -> None:
        """Keep what comes next a group that may run: each call makes the share of all smaller."""
        while self._round and not self._may_run(group := self._round[0]):
            self._round.remove(group)
            group.is_scheduled = False
            self._cap(group)

    def _cap(self, group: _Group) -> None:
        if not group.is_capped:
            group.is_capped = True
            self._capped.append(group)

    def _may_run(self, group: _Group) -> bool:
        """Whether a key may have another call: at most three for each that is free.

        So one key has three quarters of the calls at most, two keys three sevenths each, and some
        are free for a key that comes, however many keys have calls that take long. A key without a
        call may always have one. Source: Choudhury and Hahne, dynamic queue length thresholds,
        1998.
        """
        places, running = self.places, group.running
        if places is None or not running:
            return True
        free = places - len(self.out)
        # The last one is for a key that has none.
        most = min(places - max(1, places // ROOM_SHARE), (ROOM_SHARE - 1) * free)
        return running < most and free > 1

    def _look_at_capped(self) -> None:
        """Let one group go on that had too many calls; each release looks at the next one."""
        group = self._capped.popleft()
        group.is_capped = False
        self._schedule(group)

    def _forget(self, queue: _KeyQueue) -> None:
        """Remove an empty queue: the set of keys changes over time."""
        group = queue.group
        if not queue.messages and not queue.is_busy and group.queues.get(queue.key) is queue:
            del group.queues[queue.key]
        if not group.queues and not group.running:
            self._groups.pop(group.key, None)


def _insert(messages: deque[Message], message: Message) -> None:
    """Insert by sequence: at the end, unless the message was delivered before."""
    if not messages or messages[-1].sequence <= message.sequence:
        messages.append(message)
    else:
        messages.insert(bisect_left(messages, message.sequence, key=_sequence), message)


def _sequence(message: Message) -> int:
    return message.sequence
