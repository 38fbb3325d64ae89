"""One JetStream stream in memory: what is stored, refused, scheduled and removed."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.broker.incoming import HeaderError, read_headers
from runtime.broker.stored import parse_time_ns
from runtime.subjects import matches, overlaps
from runtime.testing.server.errors import NotModelled, Refused, refuse_fields
from runtime.testing.server.store import Store, Stored
from runtime.testing.server.times import NS, WallClock

if TYPE_CHECKING:
    from runtime.testing.server.consumer import Consumer

_FIELDS: dict[str, Any] = {
    "name": None,
    "subjects": None,
    "retention": ("limits", "interest", "workqueue"),
    "storage": ("file", "memory"),
    "discard": ("old", "new"),
    "max_age": None,
    "max_bytes": None,
    "max_msgs": None,
    "max_msgs_per_subject": None,
    "max_msg_size": None,
    "duplicate_window": None,
    "num_replicas": None,
    "description": None,
    "max_consumers": (-1,),
    "allow_direct": None,
    "allow_rollup_hdrs": None,
    "allow_msg_schedules": None,
    "allow_atomic": None,
    "metadata": None,
    "compression": ("none",),
    "consumer_limits": ({},),
}
_DEFAULTS: dict[str, Any] = {
    "retention": "limits",
    "storage": "file",
    "discard": "old",
    "max_age": 0,
    "max_bytes": -1,
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "max_consumers": -1,
    "num_replicas": 1,
    "duplicate_window": 120 * NS,
}
_UNKNOWN_HEADERS = ("Nats-TTL", "Nats-Incr", "Nats-Expected-Last-Msg-Id")
_ACTING = "Nats-"
_BATCH_ID = "Nats-Batch-Id"


@dataclass(slots=True)
class Answer:
    """The confirmation of a publish."""

    stream: str
    sequence: int
    duplicate: bool = False
    batch: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The confirmation in JetStream's own terms."""
        found: dict[str, Any] = {"stream": self.stream, "seq": self.sequence, **self.batch}
        if self.duplicate:
            found["duplicate"] = True
        return found


Item = tuple[str, bytes, dict[str, str], bytes]
"""Subject, header block, headers, payload."""


class Stream:
    """Stores what is published on its subjects.

    Args:
        config: the wanted configuration.
        clock: the server's.
        post: publishes a message of the server itself, for schedules that are due.
    """

    def __init__(
        self, config: dict[str, Any], clock: WallClock, post: Callable[[str, bytes, bytes], None]
    ) -> None:
        self.config = checked(config)
        self.name: str = self.config["name"]
        self.clock = clock
        self.created_ns = clock.now_ns()
        self.store = Store(lambda: self.config, self._on_removed)
        self.consumers: dict[str, Consumer] = {}
        self._post = post
        self._ids: dict[str, tuple[int, int]] = {}
        self._batches: dict[str, list[Item]] = {}
        self._due: dict[int, asyncio.TimerHandle] = {}
        self._age_timer: asyncio.TimerHandle | None = None

    @property
    def subjects(self) -> list[str]:
        """The subjects that are stored."""
        subjects: list[str] = self.config["subjects"]
        return subjects

    def takes(self, subject: str) -> bool:
        """Whether the stream stores the subject."""
        return any(matches(pattern, subject) for pattern in self.subjects)

    def publish(self, subject: str, block: bytes, data: bytes) -> Answer | None:
        """Store a message; None for one of a batch that is not complete.

        Raises:
            Refused: the message is not stored.
        """
        try:
            headers = read_headers(block) if block else {}
        except HeaderError:
            headers = {}
        item = (subject, block, headers, data)
        if _BATCH_ID in headers:
            return self._collect(item)
        self._check(item)
        if (first := self._first_of(headers)) is not None:
            return Answer(self.name, first, duplicate=True)
        return Answer(self.name, self._store(item))

    def update(self, config: dict[str, Any]) -> None:
        """Change the configuration.

        Raises:
            Refused: a field cannot be changed.
        """
        wanted = checked(config)
        for fixed in ("storage", "name"):
            if wanted[fixed] != self.config[fixed]:
                raise Refused(500, 10052, f"stream configuration update can not change {fixed}")
        if "workqueue" in (wanted["retention"], self.config["retention"]) and (
            wanted["retention"] != self.config["retention"]
        ):
            raise Refused(
                500,
                10052,
                "stream configuration update can not change retention policy to/from workqueue",
            )
        self.config = wanted
        self.store.keep_limits()
        self._watch_age()

    def settled(self, sequence: int) -> None:
        """Remove a settled message where the retention says so."""
        retention = self.config["retention"]
        if retention == "workqueue":
            self.store.remove(sequence)
        elif retention == "interest":
            message = self.store.get(sequence)
            if message is not None and not any(
                consumer.wants(message) for consumer in self.consumers.values()
            ):
                self.store.remove(sequence)

    def purge(self, request: Mapping[str, Any]) -> int:
        """Remove messages; return how many."""
        keep: int = request.get("keep", 0)
        pattern, below = request.get("filter", ">"), request.get("seq", 0)
        found = [each for each in self.store if matches(pattern, each.subject)]
        found = [each for each in found if not below or each.sequence < below]
        for each in found[: len(found) - keep]:
            self.store.remove(each.sequence)
        return max(0, len(found) - keep)

    def close(self) -> None:
        """End all timers and consumers."""
        for timer in self._due.values():
            timer.cancel()
        if self._age_timer is not None:
            self._age_timer.cancel()
        for consumer in list(self.consumers.values()):
            consumer.close()

    def state(self, pattern: str = "") -> dict[str, Any]:
        """The stream's state in JetStream's own terms."""
        first, store = self.store.first(), self.store
        never = "0001-01-01T00:00:00Z"
        first_sequence = first.sequence if first else store.last_sequence + 1
        state: dict[str, Any] = {
            "messages": len(store),
            "bytes": store.size_bytes,
            "first_seq": first_sequence if store.last_sequence else 0,
            "first_ts": self.clock.text(first.stored_at_ns) if first else never,
            "last_seq": store.last_sequence,
            "last_ts": self.clock.text(store.last_at_ns) if store.last_sequence else never,
            "num_subjects": len(store.subjects(">")),
            "consumer_count": len(self.consumers),
        }
        if pattern:
            state["subjects"] = store.subjects(pattern)
        return state

    def _collect(self, item: Item) -> Answer | None:
        if not self.config.get("allow_atomic"):
            raise Refused(400, 10174, "atomic publish is disabled")
        headers = item[2]
        batch = self._batches.setdefault(headers[_BATCH_ID], [])
        batch.append(item)
        if "Nats-Batch-Commit" not in headers:
            return None
        del self._batches[headers[_BATCH_ID]]
        for each in batch:
            self._check(each)
            if self._first_of(each[2]) is not None:
                raise Refused(400, 10201, "batch publish contains duplicate message id")
        sequences = [self._store(each) for each in batch]
        told = {"batch": headers[_BATCH_ID], "count": len(batch)}
        return Answer(self.name, sequences[-1], batch=told)

    def _check(self, item: Item) -> None:
        subject, _, headers, data = item
        config, store = self.config, self.store
        for unknown in _UNKNOWN_HEADERS:
            if unknown in headers:
                raise NotModelled(f"the header {unknown}")
        if 0 <= config["max_msg_size"] < len(data) + len(item[1]):
            raise Refused(400, 10054, "message size exceeds maximum allowed")
        expected = headers.get("Nats-Expected-Stream")
        if expected is not None and expected != self.name:
            raise Refused(400, 10060, "expected stream does not match")
        last = headers.get("Nats-Expected-Last-Sequence")
        if last is not None and int(last) != store.last_sequence:
            raise Refused(400, 10071, f"wrong last sequence: {store.last_sequence}")
        of_subject = headers.get("Nats-Expected-Last-Subject-Sequence")
        if of_subject is not None:
            found = store.last_on(
                headers.get("Nats-Expected-Last-Subject-Sequence-Subject", subject)
            )
            sequence = found.sequence if found else 0
            if int(of_subject) != sequence:
                raise Refused(400, 10071, f"wrong last sequence: {sequence}")
        if "Nats-Rollup" in headers and not config.get("allow_rollup_hdrs"):
            raise Refused(400, 10111, "rollup not permitted")
        if "Nats-Schedule" in headers:
            self._check_schedule(headers)

    def _check_schedule(self, headers: Mapping[str, str]) -> None:
        if not self.config.get("allow_msg_schedules"):
            raise Refused(400, 10188, "message schedules is disabled")
        pattern = headers["Nats-Schedule"]
        if not pattern.startswith("@at "):
            raise NotModelled("a message schedule other than @at")
        try:
            parse_time_ns(pattern.removeprefix("@at "))
        except ValueError:
            raise Refused(400, 10189, "message schedules pattern is invalid") from None
        target = headers.get("Nats-Schedule-Target", "")
        if not target or not self.takes(target):
            raise Refused(400, 10190, "message schedules target is invalid")

    def _first_of(self, headers: Mapping[str, str]) -> int | None:
        """The sequence of the message with the same id; None for a new id."""
        msg_id = headers.get("Nats-Msg-Id")
        found = self._ids.get(msg_id) if msg_id else None
        if found is None:
            return None
        sequence, stored_ns = found
        within = self.clock.now_ns() - stored_ns < self.config["duplicate_window"]
        return sequence if within else None

    def _store(self, item: Item) -> int:
        subject, block, headers, data = item
        if "Nats-Schedule" in headers or headers.get("Nats-Rollup") == "sub":
            for sequence in [each.sequence for each in self.store if each.subject == subject]:
                self.store.remove(sequence)
        elif headers.get("Nats-Rollup") == "all":
            self.purge({})
        message = self.store.add(subject, block, headers, data, self.clock.now_ns())
        if msg_id := headers.get("Nats-Msg-Id"):
            self._ids[msg_id] = (message.sequence, message.stored_at_ns)
        if "Nats-Schedule" in headers:
            due_ns = parse_time_ns(headers["Nats-Schedule"].removeprefix("@at "))
            due_ns = max(due_ns, self.clock.now_ns())
            self._due[message.sequence] = self.clock.at_ns(due_ns, lambda: self._fire(message))
        self._watch_age()
        if self.config["retention"] == "interest":
            self.settled(message.sequence)
        for consumer in list(self.consumers.values()):
            consumer.serve()
        return message.sequence

    def _fire(self, schedule: Stored) -> None:
        self.store.remove(schedule.sequence)
        kept = {
            name: value for name, value in schedule.headers.items() if not name.startswith(_ACTING)
        }
        kept |= {"Nats-Scheduler": schedule.subject, "Nats-Schedule-Next": "purge"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in kept.items())
        block = f"NATS/1.0\r\n{lines}\r\n".encode("utf-8", "surrogateescape")
        self._post(schedule.headers["Nats-Schedule-Target"], block, schedule.data)

    def _on_removed(self, message: Stored) -> None:
        timer = self._due.pop(message.sequence, None)
        if timer is not None:
            timer.cancel()
        for consumer in list(self.consumers.values()):
            consumer.forget(message.sequence)

    def _watch_age(self) -> None:
        if self._age_timer is not None:
            self._age_timer.cancel()
            self._age_timer = None
        first = self.store.first()
        if first is not None and self.config["max_age"] > 0:
            at_ns = first.stored_at_ns + self.config["max_age"]
            self._age_timer = self.clock.at_ns(at_ns, self._expire)

    def _expire(self) -> None:
        self.store.expire(self.clock.now_ns() - self.config["max_age"])
        self._watch_age()


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with JetStream's defaults.

    Raises:
        Refused: JetStream refuses it, or it is not modelled.
    """
    refuse_fields("stream", config, _FIELDS)
    full = {**_DEFAULTS, **{name: value for name, value in config.items() if value is not None}}
    if full["num_replicas"] > 1:
        raise Refused(500, 10074, "replicas > 1 not supported in non-clustered mode")
    for limit in ("max_bytes", "max_msgs", "max_msgs_per_subject", "max_msg_size"):
        full[limit] = full[limit] or -1
    subjects = full.get("subjects") or [full["name"]]
    for number, subject in enumerate(subjects):
        for other in subjects[number + 1 :]:
            if overlaps(subject, other):
                raise Refused(400, 10052, f"subject '{subject}' overlaps with '{other}'")
    if 0 < full["max_age"] < full["duplicate_window"]:
        raise Refused(400, 10052, "duplicates window can not be larger then max age")
    if full.get("allow_msg_schedules"):
        if full["discard"] == "new":
            raise Refused(400, 10052, "message schedules can not be used with discard new")
        full["allow_rollup_hdrs"] = True
    full["subjects"] = list(subjects)
    return full
