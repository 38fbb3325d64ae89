"""Watches streams that delete their oldest messages when full, before unread ones are deleted."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from runtime.broker.connection import ApiError, Broker
from runtime.errors import Unavailable
from runtime.lag import LagWatch
from runtime.manifest import Manifest
from runtime.observe.logs import get_logger
from runtime.observe.metrics import Metrics
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.streams")

EVERY_S = 10.0
SOON_PERCENT = 80
AT_ONCE_PERCENT = 95
_NS_PER_S = 1_000_000_000
_NO_MESSAGE = 10037


class Unread(NamedTuple):
    """How near the unread messages of a stream are to their deletion.

    Attributes:
        durable: the consumer that is furthest behind.
        percent: how much of a limit its unread messages take; at 100 the oldest is deleted next.
        limit: that limit, of which they take the most: `max_bytes`, `max_msgs` or `max_age`.
    """

    durable: str
    percent: int
    limit: str


class Place(NamedTuple):
    """How far a consumer is.

    Attributes:
        settled_to: it has settled all of its messages up to this sequence.
        unread: its messages that are not delivered, or not settled.
        is_filtered: whether only a part of the stream's messages is its own.
    """

    settled_to: int
    unread: int
    is_filtered: bool = False


class UnreadWatch:
    """Polls such streams every few seconds; tells of them in log, metrics and readiness.

    A stream that is full of messages which every function has settled is in order. What counts is
    the place of the function that is furthest behind. The bytes of its unread messages are
    estimated by the mean size of the stream's messages.

    Args:
        broker: the connection.
        metrics: gets `unread_percents` and `unread_deleted`.
        lag: knows which consumers functions have.
        manifest: its streams with `discard: old` are polled.
    """

    def __init__(self, broker: Broker, metrics: Metrics, lag: LagWatch, manifest: Manifest) -> None:
        self._broker = broker
        self._metrics = metrics
        self._lag = lag
        self._streams: list[str] = []
        self._first: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self.follow(manifest)
        self._task = SupervisedTask(self._run, "unread watch")

    def follow(self, manifest: Manifest) -> None:
        """Poll the streams of another manifest from now on."""
        before = self._streams
        self._streams = sorted(
            name
            for name, spec in manifest.streams.items()
            if spec.discard == "old" and spec.retention == "limits"
        )
        for stream in set(before) - set(self._streams):
            self._forget(stream)

    def start(self) -> None:
        """Start polling."""
        self._task.start()

    async def stop(self) -> None:
        """Stop polling."""
        await self._task.stop()

    async def check(self) -> str | None:
        """Probe: nowhere are unread messages near their deletion."""
        near = [
            f"{stream} {percent}%"
            for stream, percent in self._metrics.unread_percents.items()
            if percent >= SOON_PERCENT
        ]
        return f"UNREAD {', '.join(near)}" if near else None

    async def _run(self) -> None:
        while True:
            for stream in self._streams:
                await self._ask(stream)
            await asyncio.sleep(EVERY_S)

    async def _ask(self, stream: str) -> None:
        durables = self._lag.durables_of(stream)
        if not durables:
            self._forget(stream)
            return
        try:
            found = await self._broker.api(f"STREAM.INFO.{stream}")
            # After the stream: what was deleted by then, and is not settled now, was unread.
            places = {durable: await self._place(stream, durable, found) for durable in durables}
            behind = slowest(places)
            oldest_at = await self._oldest_unread_at(stream, found, places, behind)
        except (Unavailable, ApiError):
            # Unknown, which is not the same as empty.
            self._metrics.unread_percents.pop(stream, None)
            return
        self._tell_of_deleted(stream, found["state"], places, behind)
        self._tell(stream, measure(found, places, behind, oldest_at))

    async def _oldest_unread_at(
        self,
        stream: str,
        found: Mapping[str, Any],
        places: Mapping[str, Place],
        durable: str | None,
    ) -> datetime | None:
        """When the oldest unread message was stored; None while that cannot matter yet."""
        state, max_age_ns = found["state"], found["config"].get("max_age") or 0
        if durable is None or not max_age_ns or not state["messages"]:
            return None
        if _share_of_age(found, _time(state["first_ts"])) < SOON_PERCENT / 100:
            return None
        message = await self._next(stream, max(places[durable].settled_to + 1, state["first_seq"]))
        return None if message is None else _time(message["time"])

    async def _place(self, stream: str, durable: str, found: Mapping[str, Any]) -> Place:
        """How far a consumer is; of one with filters, up to which message of its own."""
        consumer = await self._broker.api(f"CONSUMER.INFO.{stream}.{durable}")
        unread = consumer["num_pending"] + consumer["num_ack_pending"]
        settled_to, config = consumer["ack_floor"]["stream_seq"], consumer["config"]
        single = config.get("filter_subject")
        filters = config.get("filter_subjects") or ([single] if single else [])
        if not filters or not unread:
            return Place(settled_to, unread, is_filtered=bool(filters))
        first = max(settled_to + 1, found["state"]["first_seq"])
        nexts = [await self._next(stream, first, subject) for subject in filters]
        oldest = min(
            (each["seq"] for each in nexts if each), default=found["state"]["last_seq"] + 1
        )
        return Place(oldest - 1, unread, is_filtered=True)

    async def _next(self, stream: str, sequence: int, subject: str = ">") -> dict[str, Any] | None:
        """The first message from a sequence on; None when there is none."""
        asked = {"seq": sequence, "next_by_subj": subject}
        try:
            answer = await self._broker.api(f"STREAM.MSG.GET.{stream}", asked)
        except ApiError as error:
            if error.err_code == _NO_MESSAGE:
                return None
            raise
        message: dict[str, Any] = answer["message"]
        return message

    def _tell_of_deleted(
        self,
        stream: str,
        state: Mapping[str, Any],
        places: Mapping[str, Place],
        durable: str | None,
    ) -> None:
        before, first = self._first.get(stream), state["first_seq"]
        self._first[stream] = first
        # Of a consumer with filters nobody can say which of the deleted messages were its own.
        if before is None or durable is None or places[durable].is_filtered:
            return
        deleted = first - max(before, places[durable].settled_to + 1)
        if deleted <= 0:
            return
        counts = self._metrics.unread_deleted
        counts[stream] = counts.get(stream, 0) + deleted
        log.error(
            "Messages were deleted from a stream before a consumer had settled them",
            stream=stream,
            durable=durable,
            at_most=deleted,
        )

    def _tell(self, stream: str, unread: Unread) -> None:
        self._metrics.unread_percents[stream] = unread.percent
        told = self._told.get(stream, 0)
        level = next((at for at in (AT_ONCE_PERCENT, SOON_PERCENT) if unread.percent >= at), 0)
        self._told[stream] = level
        fields = {"stream": stream, **unread._asdict()}
        if level > told:
            log.error(
                "A stream will soon delete messages that a consumer has not settled", **fields
            )
        elif told and not level:
            log.info("A stream's consumers have caught up", **fields)

    def _forget(self, stream: str) -> None:
        self._metrics.unread_percents.pop(stream, None)
        self._first.pop(stream, None)
        self._told.pop(stream, None)


def slowest(places: Mapping[str, Place]) -> str | None:
    """The durable that is furthest behind; None when all have caught up."""
    behind = [name for name, place in places.items() if place.unread]
    return min(behind, key=lambda name: places[name].settled_to, default=None)


def measure(
    found: Mapping[str, Any],
    places: Mapping[str, Place],
    durable: str | None,
    oldest_at: datetime | None,
) -> Unread:
    """How much of its limits the unread messages of a stream take.

    Args:
        found: JetStream's `stream_info`.
        places: how far consumers are, by durable.
        durable: the one that is furthest behind.
        oldest_at: when the oldest unread message was stored; None while that cannot matter.
    """
    state, config = found["state"], found["config"]
    if durable is None or not state["messages"]:
        return Unread(durable or "", 0, "")
    acked = max(places[durable].settled_to, state["first_seq"] - 1)
    span = state["last_seq"] - state["first_seq"] + 1
    unread = (state["last_seq"] - acked) / span
    shares = {
        "max_bytes": _share(unread * state["bytes"], config.get("max_bytes")),
        "max_msgs": _share(unread * state["messages"], config.get("max_msgs")),
        "max_age": 0.0 if oldest_at is None else _share_of_age(found, oldest_at),
    }
    limit = max(shares, key=lambda name: shares[name])
    return Unread(durable, min(100, int(shares[limit] * 100)), limit)


def _share(used: float, limit: int | None) -> float:
    return used / limit if limit is not None and limit > 0 else 0.0


def _share_of_age(found: Mapping[str, Any], stored_at: datetime) -> float:
    now = _time(found["ts"]) if "ts" in found else datetime.now(UTC)
    max_age_ns: int = found["config"]["max_age"]
    return (now - stored_at).total_seconds() * _NS_PER_S / max_age_ns


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
