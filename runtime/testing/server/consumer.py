"""One durable pull consumer in memory: delivers, redelivers, counts and gives up."""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.broker.stored import parse_time_ns
from runtime.subjects import matches, overlaps
from runtime.testing.server.errors import NotModelled, Refused, refuse_fields
from runtime.testing.server.pulls import PullQueue
from runtime.testing.server.store import Stored
from runtime.testing.server.stream import Stream

_FIELDS: dict[str, Any] = {
    "name": None,
    "durable_name": None,
    "description": None,
    "ack_policy": ("explicit",),
    "deliver_policy": ("all", "new", "last", "by_start_sequence", "by_start_time"),
    "opt_start_seq": None,
    "opt_start_time": None,
    "replay_policy": ("instant",),
    "ack_wait": None,
    "max_ack_pending": None,
    "max_deliver": None,
    "max_waiting": None,
    "filter_subject": None,
    "filter_subjects": None,
    "metadata": None,
    "inactive_threshold": None,
    "pause_until": None,
    "num_replicas": (0, 1),
    "mem_storage": None,
}
_DEFAULTS: dict[str, Any] = {
    "ack_policy": "explicit",
    "deliver_policy": "all",
    "replay_policy": "instant",
    "ack_wait": 30_000_000_000,
    "max_ack_pending": 1000,
    "max_deliver": -1,
    "max_waiting": 512,
    "num_replicas": 0,
}
_EPHEMERAL_NS = 5_000_000_000
"""How long a server keeps a consumer that is not durable without requests."""
_FIXED = ("ack_policy", "deliver_policy", "replay_policy", "opt_start_seq", "opt_start_time")


class Outbox(Protocol):
    """What a consumer sends through its server."""

    def deliver(self, message: Stored, inbox: str, reply: str) -> None:
        """Send a stored message to a pull request."""

    def status(self, inbox: str, block: bytes) -> None:
        """Send a status to a pull request."""

    def advise(self, subject: str, document: dict[str, Any]) -> None:
        """Publish an advisory."""

    def has_interest(self, subject: str) -> bool:
        """Whether a client listens on the subject."""


@dataclass(slots=True)
class Pending:
    """A delivered message that is not settled.

    Attributes:
        number: the consumer's sequence of its last delivery.
        due_ns: when it is delivered again.
        is_held: whether a client has it; False after a NAK.
    """

    number: int
    due_ns: int
    is_held: bool = True


class Consumer:
    """Serves pull requests from a stream.

    Args:
        stream: the stream.
        config: the wanted configuration.
        outbox: sends for the consumer.
        ended: called when the consumer deletes itself.
    """

    def __init__(
        self,
        stream: Stream,
        config: dict[str, Any],
        outbox: Outbox,
        ended: Callable[["Consumer"], None],
    ) -> None:
        self.config = checked(config)
        self.name: str = self.config.get("durable_name") or self.config["name"]
        self._stream = stream
        self._clock = stream.clock
        self._outbox = outbox
        self._ended = ended
        self.created_ns = self._clock.now_ns()
        self.pulls = PullQueue(self._clock, outbox.status, outbox.has_interest)
        self.pending: dict[int, Pending] = {}
        self._again: deque[int] = deque()
        self._deliveries: dict[int, int] = {}
        self._next = self._first_sequence()
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._inactive: asyncio.TimerHandle | None = None
        self._serving = False
        self._watch_pause()
        self._heard()

    @property
    def patterns(self) -> tuple[str, ...]:
        """The filter; empty for all messages of the stream."""
        single = self.config.get("filter_subject")
        return tuple(self.config.get("filter_subjects") or ([single] if single else ()))

    @property
    def is_paused(self) -> bool:
        """Whether nothing is delivered for now."""
        until: str = self.config.get("pause_until") or ""
        return bool(until) and parse_time_ns(until) > self._clock.now_ns()

    def update(self, config: dict[str, Any]) -> None:
        """Change the configuration.

        Raises:
            Refused: a field cannot be changed.
        """
        wanted = checked(config)
        for field in _FIXED:
            if wanted.get(field) != self.config.get(field):
                raise Refused(500, 10012, f"{field.replace('_', ' ')} can not be updated")
        self.config = wanted
        self._watch_pause()
        self._watch_pending()
        self.serve()

    def held(self) -> int:
        """The number of messages that clients work on, as far as they have not said otherwise."""
        return sum(each.is_held for each in self.pending.values())

    def pause(self, until: str) -> None:
        """Deliver nothing until a time; an empty text ends the pause."""
        self.config["pause_until"] = until
        self._watch_pause()
        self.serve()

    def pull(self, reply: str, body: dict[str, Any]) -> None:
        """Take a pull request.

        Raises:
            NotModelled: it has a field that is not modelled.
        """
        self._heard()
        request = self.pulls.add(reply, body)
        self.serve()
        if body.get("no_wait"):
            self.pulls.expire(request, "404 No Messages")

    def serve(self) -> None:
        """Deliver as many messages as requests, limits and the stream allow."""
        if self._serving or self.is_paused:
            return
        self._serving = True
        try:
            while self.pulls.has_any() and self._serve_one():
                pass
        finally:
            self._serving = False
        self._watch_pending()

    def settle(self, tokens: list[str], payload: bytes) -> None:
        """Act on an acknowledgement; `tokens` are those of its subject, from the deliveries on."""
        self._heard()
        sequence = int(tokens[1])
        verb, _, argument = payload.partition(b" ")
        if verb in (b"", b"+ACK", b"+OK", b"+TERM"):
            self._ack(sequence)
        elif verb == b"-NAK":
            self._nak(sequence, argument)
        elif verb == b"+WPI":
            if sequence in self.pending:
                self.pending[sequence].due_ns = self._clock.now_ns() + self.config["ack_wait"]
                self._watch_pending()
        else:
            raise NotModelled(f"the acknowledgement {verb.decode(errors='replace')}")

    def wants(self, message: Stored) -> bool:
        """Whether the message is not settled yet, for retention `interest`."""
        if self.patterns and not any(matches(each, message.subject) for each in self.patterns):
            return False
        sequence = message.sequence
        if sequence in self.pending or sequence in self._again:
            return True
        return sequence >= self._next

    def forget(self, sequence: int) -> None:
        """A message was removed from the stream."""
        self.pending.pop(sequence, None)
        self._deliveries.pop(sequence, None)
        if sequence in self._again:
            self._again.remove(sequence)

    def close(self, status: str = "409 Consumer Deleted") -> None:
        """End the consumer."""
        for timer in (self._timer, self._pause, self._inactive):
            if timer is not None:
                timer.cancel()
        self.pulls.close(status)

    def document(self) -> dict[str, Any]:
        """The consumer's information in JetStream's own terms."""
        delivered = {"consumer_seq": self._number, "stream_seq": self._next - 1}
        floor = min(self.pending, default=self._next) - 1
        redelivered = sum(self._deliveries.get(each, 1) > 1 for each in self.pending)
        found: dict[str, Any] = {
            "type": "io.nats.jetstream.api.v1.consumer_info_response",
            "stream_name": self._stream.name,
            "name": self.name,
            "created": self._clock.text(self.created_ns),
            "config": dict(self.config),
            "delivered": delivered,
            "ack_floor": {"consumer_seq": self._number - len(self.pending), "stream_seq": floor},
            "num_ack_pending": len(self.pending),
            "num_redelivered": redelivered,
            "num_waiting": len(self.pulls),
            "num_pending": self._stream.store.count_from(self.patterns, self._next),
            "ts": self._clock.text(),
        }
        if self.is_paused:
            left_ns = parse_time_ns(self.config["pause_until"]) - self._clock.now_ns()
            found |= {"paused": True, "pause_remaining": left_ns}
        return found

    def _first_sequence(self) -> int:
        store, policy = self._stream.store, self.config["deliver_policy"]
        if policy == "new":
            return store.last_sequence + 1
        if policy == "last":
            found = [store.last_on(pattern) for pattern in self.patterns or (">",)]
            return max((each.sequence for each in found if each), default=store.last_sequence + 1)
        if policy == "by_start_sequence":
            return int(self.config["opt_start_seq"])
        if policy == "by_start_time":
            since_ns = parse_time_ns(self.config["opt_start_time"])
            later = (each.sequence for each in store if each.stored_at_ns >= since_ns)
            return next(later, store.last_sequence + 1)
        return 1

    def _serve_one(self) -> bool:
        """Deliver the next message; return whether there may be another."""
        while self._again:
            sequence = self._again[0]
            message = self._stream.store.get(sequence)
            if message is None or sequence not in self.pending:
                self._again.popleft()
                continue
            if self._is_exhausted(sequence):
                self._again.popleft()
                self._give_up(sequence)
                continue
            if not self._send(message):
                return False
            self._again.remove(sequence)
            return True
        if 0 < self.config["max_ack_pending"] <= len(self.pending):
            return False
        message = self._stream.store.next_on(self.patterns, self._next)
        if message is None:
            return False
        if not self._send(message):
            return False
        self._next = message.sequence + 1
        return True

    def _send(self, message: Stored) -> bool:
        """Send a message to the request whose turn it is; False when no request can take it."""
        sequence = message.sequence
        deliveries = self._deliveries.get(sequence, 0) + 1
        number = self._number + 1
        left = self._stream.store.count_from(self.patterns, max(self._next, sequence + 1))
        reply = (
            f"$JS.ACK.{self._stream.name}.{self.name}.{deliveries}.{sequence}.{number}"
            f".{message.stored_at_ns}.{left}"
        )
        size_bytes = len(message.subject) + len(reply) + len(message.block) + len(message.data)
        request = self.pulls.next(size_bytes)
        if request is None:
            return False
        self._number = number
        self._deliveries[sequence] = deliveries
        due_ns = self._clock.now_ns() + self.config["ack_wait"]
        self.pending[sequence] = Pending(number, due_ns)
        self._outbox.deliver(message, request.reply, reply)
        return True

    def _is_exhausted(self, sequence: int) -> bool:
        most = self.config["max_deliver"]
        return bool(0 < most <= self._deliveries.get(sequence, 0))

    def _give_up(self, sequence: int) -> None:
        self.pending.pop(sequence, None)
        subject = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{self._stream.name}.{self.name}"
        self._outbox.advise(
            subject,
            {
                "type": "io.nats.jetstream.advisory.v1.max_deliver",
                "id": f"{self.name}-{sequence}",
                "timestamp": self._clock.text(),
                "stream": self._stream.name,
                "consumer": self.name,
                "stream_seq": sequence,
                "deliveries": self._deliveries.get(sequence, 0),
            },
        )

    def _ack(self, sequence: int) -> None:
        # A late acknowledgement of an earlier delivery counts too, as on a server.
        if self.pending.pop(sequence, None) is None:
            return
        if sequence in self._again:
            self._again.remove(sequence)
        self._deliveries.pop(sequence, None)
        self._stream.settled(sequence)
        self._watch_pending()
        self.serve()

    def _nak(self, sequence: int, argument: bytes) -> None:
        pending = self.pending.get(sequence)
        if pending is None or sequence in self._again:
            return
        pending.is_held = False
        delay_ns = 0
        if argument.startswith(b"{"):
            delay_ns = json.loads(argument).get("delay", 0)
        if delay_ns > 0:
            pending.due_ns = self._clock.now_ns() + delay_ns
            self._watch_pending()
            return
        self._again.append(sequence)
        self.serve()

    def _watch_pending(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queued = set(self._again)
        due = [each.due_ns for sequence, each in self.pending.items() if sequence not in queued]
        if due:
            self._timer = self._clock.at_ns(min(due), self._redeliver)

    def _redeliver(self) -> None:
        self._timer = None
        now_ns = self._clock.now_ns()
        queued = set(self._again)
        due = [
            (pending.due_ns, sequence)
            for sequence, pending in self.pending.items()
            if pending.due_ns <= now_ns and sequence not in queued
        ]
        self._again.extend(sequence for _, sequence in sorted(due))
        self.serve()
        self._watch_pending()

    def _watch_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self.is_paused:
            until_ns = parse_time_ns(self.config["pause_until"])
            self._pause = self._clock.at_ns(until_ns, self.serve)

    def _heard(self) -> None:
        threshold_ns = self.config.get("inactive_threshold") or 0
        if self._inactive is not None:
            self._inactive.cancel()
            self._inactive = None
        if threshold_ns:
            at_ns = self._clock.now_ns() + threshold_ns
            self._inactive = self._clock.at_ns(at_ns, self._end_inactive)

    def _end_inactive(self) -> None:
        if self.pulls.has_any() or self.pending:
            self._heard()
            return
        self._ended(self)


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with JetStream's defaults.

    Raises:
        Refused: JetStream refuses it, or it is not modelled.
    """
    refuse_fields("consumer", config, _FIELDS)
    if not config.get("durable_name"):
        config = {"inactive_threshold": _EPHEMERAL_NS, **config}
    full = {**_DEFAULTS, **{name: value for name, value in config.items() if value is not None}}
    full["max_deliver"] = full["max_deliver"] or -1
    full["ack_wait"] = full["ack_wait"] or _DEFAULTS["ack_wait"]
    full["max_ack_pending"] = full["max_ack_pending"] or _DEFAULTS["max_ack_pending"]
    if full.get("filter_subject") and full.get("filter_subjects"):
        raise Refused(
            400, 10136, "consumer cannot have both FilterSubject and FilterSubjects specified"
        )
    filters = full.get("filter_subjects") or []
    for position, pattern in enumerate(filters):
        if any(overlaps(pattern, other) for other in filters[position + 1 :]):
            raise Refused(400, 10138, "consumer subject filters cannot overlap")
    return full
