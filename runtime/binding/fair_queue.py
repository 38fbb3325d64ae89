"""The line in which messages wait for their call, where their keys take turns.

Where there is no key the line is a plain `deque`: first come, first served. `FairQueue` does what
that does, with a queue for each key. No I/O, and no clock.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from runtime.binding.token_bucket import TokenBucket
from runtime.message import Message

Key = Callable[[Message], str]


class ReadyQueue(Protocol):
    """What the buffer needs of a line; a `deque` has it."""

    def append(self, message: Message, /) -> None:
        """Have the message wait."""

    def popleft(self) -> Message:
        """Take the one whose turn it is.

        Raises:
            IndexError: it is nobody's.
        """

    def __getitem__(self, place: int, /) -> Message:
        """With 0 the one that `popleft` would take."""

    def __len__(self) -> int:
        """How many can be taken one after the other."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """A message that failed and will be delivered again: its keys, and its sequence."""

    fair_key: str
    order_key: str
    sequence: int


@dataclass(slots=True, eq=False)
class _Queue:
    """The messages of one key of the order, or of a whole group that has none.

    Attributes:
        awaited: the sequence of a message that failed and will be delivered again; 0 for none.
        is_busy: whether nothing of it may be taken, as one is being worked on or awaited.
    """

    group: "_Group"
    key: str
    messages: deque[Message] = field(default_factory=deque)
    awaited: int = 0
    is_busy: bool = False
    is_listed: bool = False


@dataclass(slots=True, eq=False)
class _Group:
    """Those who share a turn: the queues of one key of the fairness.

    Attributes:
        listed: its queues of which something may be taken, the next one first.
        running: messages taken and not released.
    """

    key: str
    queues: dict[str, _Queue] = field(default_factory=dict)
    listed: deque[_Queue] = field(default_factory=deque)
    running: int = 0
    waiting: int = 0
    has_turn: bool = False


class FairQueue:
    """A line in which groups take turns, and of each key of the order one message is out at a time.

    Args:
        fair_key: whose turn a message shares.
        order_key: if given, the messages of one such key are taken one after the other, by their
            sequence: the next one when the one before was released.
        most_running: how many of one group may be out at a time.
        bucket: if given, each message that is taken uses up a turn of it.

    Attributes:
        is_open: while False nothing can be taken.
        most_out: how many messages of all keys may be out at a time; None for any number.
        blocked: those that wait for one of their key that failed and will be delivered again.
    """

    def __init__(
        self,
        fair_key: Key,
        *,
        order_key: Key | None = None,
        most_running: int | None = None,
        token_bucket: TokenBucket | None = None,
    ) -> None:
        self.fair_key = fair_key
        self.is_open = True
        self.most_out: int | None = None
        self.blocked: set[Message] = set()
        self._order_key = order_key
        self._most_running = most_running
        self._token_bucket = token_bucket
        self._groups: dict[str, _Group] = {}
        self._rate_limiter: deque[_Group] = deque()
        self._out: dict[Message, _Queue] = {}
        self._waiting = 0
        self._listed = 0

    def __bool__(self) -> bool:
        return self._may_take() and (self._token_bucket is None or self._token_bucket.count() > 0)

    def __len__(self) -> int:
        if not self._may_take():
            return 0
        count = self._waiting if self._order_key is None else self._listed
        if self.most_out is not None:
            count = min(count, self.most_out - len(self._out))
        return count if self._token_bucket is None else min(count, self._token_bucket.count())

    def next_in_s(self) -> float | None:
        """When a message can be taken that only the bucket holds back; None when there is none."""
        if self._token_bucket is None or not self._may_take():
            return None
        return self._token_bucket.next_in_s()

    def __getitem__(self, place: int, /) -> Message:
        return self._rate_limiter[place].listed[0].messages[0]

    def append(self, message: Message, /) -> None:
        """Have the message wait behind those of its key that were stored before it."""
        queue = self._queue_of(message)
        _insert(queue.messages, message)
        queue.group.waiting += 1
        self._waiting += 1
        if queue.awaited == message.sequence:
            self._unblock(queue)
        elif queue.awaited:
            self.blocked.add(message)
        self._list(queue)

    def popleft(self) -> Message:
        """Take the next message of the group whose turn it is.

        Raises:
            IndexError: it is nobody's.
        """
        group = self._rate_limiter.popleft()
        group.has_turn = False
        queue = group.listed.popleft()
        queue.is_listed = False
        self._listed -= 1
        message = queue.messages.popleft()
        if self._token_bucket is not None:
            self._token_bucket.take()
        self._out[message] = queue
        group.waiting -= 1
        group.running += 1
        self._waiting -= 1
        queue.is_busy = self._order_key is not None
        self._list(queue)
        self._give_turn(group)
        return message

    def release(self, message: Message, *, comes_back: bool = False) -> None:
        """Say that a message is not worked on any more; nothing happens when it was never taken.

        Args:
            message: it.
            comes_back: whether it will be delivered again, so that those of its key must wait.
        """
        queue = self._out.pop(message, None)
        if queue is None:
            return
        queue.group.running -= 1
        if comes_back and self._order_key is not None:
            self._block(queue, message.sequence)
        else:
            queue.is_busy = False
        self._list(queue)
        self._give_turn(queue.group)
        self._forget(queue)

    def is_awaited(self, message: Message) -> bool:
        """Whether those of its key wait for this very message."""
        queue = self._find(message)
        return queue is not None and queue.awaited == message.sequence != 0

    def stop_awaiting(self, awaited: Message | Awaited) -> bool:
        """Let those of its key go on without it; False when they do not wait for it."""
        queue = self._find(awaited)
        if queue is None or queue.awaited != awaited.sequence:
            return False
        self._unblock(queue)
        self._list(queue)
        self._forget(queue)
        return True

    def await_return(self, awaited: Awaited) -> None:
        """Have those of a key wait for a message that another host has sent back."""
        queue = self._queue(awaited.fair_key, awaited.order_key)
        if not any(message.sequence == awaited.sequence for message in queue.messages):
            self._block(queue, awaited.sequence)
            self._unlist(queue)

    def awaited(self) -> list[Awaited]:
        """What those of some key wait for."""
        return [
            Awaited(group.key, queue.key, queue.awaited)
            for group in self._groups.values()
            for queue in group.queues.values()
            if queue.awaited
        ]

    def fair_keys(self) -> list[str]:
        """The keys of the fairness that have messages here."""
        return list(self._groups)

    def take_back(
        self, fair_key: str, keep: int, may_go: Callable[[Message], bool]
    ) -> list[Message]:
        """Have the newest messages of a group wait no more, until so many are left.

        Args:
            fair_key: the group's.
            keep: how many stay.
            may_go: whether a message need not stay; with one that must, those before it stay, too.
        """
        group = self._groups.get(fair_key)
        if group is None or group.waiting <= keep:
            return []
        waiting = [message for queue in group.queues.values() for message in queue.messages]
        waiting.sort(key=_sequence)
        gone: list[Message] = []
        while len(waiting) > keep and may_go(waiting[-1]):
            gone.append(waiting.pop())
        for message in gone:
            self._remove(message)
        gone.reverse()
        return gone

    def keys_of(self, message: Message) -> tuple[str, str]:
        """A message's key of the fairness and of the order."""
        return self.fair_key(message), self._order_key(message) if self._order_key else ""

    def waiting_of(self, fair_key: str) -> int:
        """How many messages of a group wait."""
        group = self._groups.get(fair_key)
        return group.waiting if group is not None else 0

    @property
    def is_ordered(self) -> bool:
        """Whether messages have a key of the order."""
        return self._order_key is not None

    @property
    def waiting(self) -> int:
        """How many messages wait, whether or not they may be taken."""
        return self._waiting

    @property
    def is_idle(self) -> bool:
        """Whether nothing is out, and nothing may be taken."""
        return not self._out and not self

    @property
    def groups(self) -> int:
        """How many keys of the fairness have messages here."""
        return len(self._groups)

    def _remove(self, message: Message) -> None:
        queue = self._queue_of(message)
        queue.messages.remove(message)
        queue.group.waiting -= 1
        self._waiting -= 1
        self.blocked.discard(message)
        if not queue.messages:
            self._unlist(queue)
            self._forget(queue)

    def _may_take(self) -> bool:
        if not self._rate_limiter or not self.is_open:
            return False
        return self.most_out is None or len(self._out) < self.most_out

    def _queue_of(self, message: Message) -> _Queue:
        return self._queue(*self.keys_of(message))

    def _queue(self, fair_key: str, order_key: str) -> _Queue:
        group = self._groups.get(fair_key)
        if group is None:
            group = self._groups[fair_key] = _Group(fair_key)
        queue = group.queues.get(order_key)
        if queue is None:
            queue = group.queues[order_key] = _Queue(group, order_key)
        return queue

    def _find(self, message: Message | Awaited) -> _Queue | None:
        if isinstance(message, Awaited):
            fair_key, order_key = message.fair_key, message.order_key
        else:
            fair_key, order_key = self.keys_of(message)
        group = self._groups.get(fair_key)
        return group.queues.get(order_key) if group is not None else None

    def _block(self, queue: _Queue, awaited: int) -> None:
        queue.awaited, queue.is_busy = awaited, True
        self.blocked.update(queue.messages)

    def _unblock(self, queue: _Queue) -> None:
        queue.awaited, queue.is_busy = 0, False
        self.blocked.difference_update(queue.messages)

    def _list(self, queue: _Queue) -> None:
        if queue.messages and not queue.is_busy and not queue.is_listed:
            queue.is_listed = True
            queue.group.listed.append(queue)
            self._listed += 1
            self._give_turn(queue.group)

    def _unlist(self, queue: _Queue) -> None:
        if not queue.is_listed:
            return
        queue.is_listed = False
        self._listed -= 1
        group = queue.group
        group.listed.remove(queue)
        if not group.listed and group.has_turn:
            group.has_turn = False
            self._rate_limiter.remove(group)

    def _give_turn(self, group: _Group) -> None:
        most = self._most_running
        if group.listed and not group.has_turn and (most is None or group.running < most):
            group.has_turn = True
            self._rate_limiter.append(group)

    def _forget(self, queue: _Queue) -> None:
        """Keys come and go; what is empty is not kept."""
        group = queue.group
        if not queue.messages and not queue.is_busy and group.queues.get(queue.key) is queue:
            del group.queues[queue.key]
        if not group.queues and not group.running:
            self._groups.pop(group.key, None)


def _insert(messages: deque[Message], message: Message) -> None:
    """Put a message in its place by its sequence, which is the last but for redeliveries."""
    if not messages or messages[-1].sequence <= message.sequence:
        messages.append(message)
    else:
        messages.insert(bisect_left(messages, message.sequence, key=_sequence), message)


def _sequence(message: Message) -> int:
    return message.sequence
