"""Watches streams that delete their oldest messages when full, before unread ones are deleted."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from runtime.broker.connection import ApiError, Broker
from runtime.errors import Unavailable
from runtime.lag import LagWatch
from runtime.manifest import Manifest
from runtime.observe.logs import get_logger
from runtime.observe.metrics import Metrics
from runtime.supervised_task import SupervisedTask
from runtime.unread_messages import (
    Lost,
    Place,
    Unread,
    accounted,
    lost_since,
    measure,
    seconds_left,
    share_of_age,
    share_of_flow,
    slowest,
)

log = get_logger("runtime.streams")

EVERY_S = 10.0
OFTEN_S = 1.0
SOON_PERCENT, SOON_S = 80, 60.0
AT_ONCE_PERCENT, AT_ONCE_S = 95, 10.0
# What was told is taken back when so little of the limit is unread.
_OVER_PERCENT = 50
# A stream is looked at so often while it fills once.
_LOOKS = 10
_SAMPLES = 10
_FIRST_LOOK_S = 2.0
_NO_MESSAGE = 10037


class _Look(NamedTuple):
    """A look at a stream: when, its last sequence, and the unread share of its limits."""

    at_s: float
    last: int
    share: float


class UnreadWatch:
    """Polls such streams; tells of them in log, metrics and readiness.

    A stream is asked every ten seconds, and up to every second if it could fill soon at the rate at
    which messages come now. An alarm comes at four fifths of a limit, or a minute before it is
    reached if the unread messages go on to grow as they do.

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
        self._counted: dict[tuple[str, str], Place] = {}
        self._looks: dict[str, deque[_Look]] = {}
        self._told: dict[str, int] = {}
        self._due_s: dict[str, float] = {}
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

    async def look(self) -> None:
        """Look at all streams once, before this process pulls from them.

        What was deleted while no process pulled shows only now: JetStream knows where a consumer
        was, and the next delivery moves it.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LOOK_S):
                await asyncio.gather(*map(self._ask, self._streams))

    def start(self) -> None:
        """Start polling."""
        self._task.start()

    async def stop(self) -> None:
        """Stop polling."""
        await self._task.stop()

    async def check(self) -> str | None:
        """Probe: nowhere are unread messages near their deletion."""
        near = [
            f"{stream} {self._metrics.unread_percents.get(stream, 0)}%"
            for stream, level in self._told.items()
            if level
        ]
        return f"UNREAD {', '.join(near)}" if near else None

    async def _run(self) -> None:
        while True:
            for stream in self._streams:
                if self._due_s.get(stream, 0.0) <= time.monotonic():
                    await self._ask(stream)
            await asyncio.sleep(OFTEN_S)

    async def _ask(self, stream: str) -> None:
        self._due_s[stream] = time.monotonic() + EVERY_S
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
        self._tell_of_deleted(stream, found["state"]["first_seq"], places)
        unread = measure(found, places, behind, oldest_at)
        self._tell(stream, unread, self._seconds_left(stream, found, unread.share))

    def _seconds_left(self, stream: str, found: Mapping[str, Any], share: float) -> float | None:
        """When unread messages will be deleted; decides as well when to look again."""
        looks = self._looks.setdefault(stream, deque(maxlen=_SAMPLES))
        now = _Look(time.monotonic(), found["state"]["last_seq"], share)
        looks.append(now)
        while now.at_s - looks[0].at_s > EVERY_S and len(looks) > 2:  # noqa: PLR2004 - two to compare
            looks.popleft()
        before = looks[0]
        passed_s = now.at_s - before.at_s
        fills_by = (
            share_of_flow(found, max(0, now.last - before.last)) / passed_s if passed_s else 0
        )
        left_s = (1 - share) / fills_by if fills_by else (EVERY_S * _LOOKS if passed_s else 0.0)
        self._due_s[stream] = now.at_s + min(EVERY_S, max(OFTEN_S, left_s / _LOOKS))
        return seconds_left([(each.at_s, each.share) for each in looks])

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
        if share_of_age(found, _time(state["first_ts"])) < SOON_PERCENT / 100:
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
        place = Place(
            settled_to,
            unread,
            bool(filters),
            consumer["delivered"]["stream_seq"],
            consumer["delivered"]["consumer_seq"],
            consumer["num_pending"],
            consumer["num_redelivered"],
            consumer["created"],
        )
        if not filters or not unread:
            return place
        first = max(settled_to + 1, found["state"]["first_seq"])
        nexts = [await self._next(stream, first, subject) for subject in filters]
        oldest = min(
            (each["seq"] for each in nexts if each), default=found["state"]["last_seq"] + 1
        )
        return place._replace(settled_to=oldest - 1)

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

    def _tell_of_deleted(self, stream: str, first: int, places: Mapping[str, Place]) -> None:
        worst = 0
        for durable, place in places.items():
            lost = lost_since(self._counted.get((stream, durable)), place, first)
            self._counted[stream, durable] = accounted(place, first)
            if lost.at_most:
                worst = max(worst, lost.at_most)
                _log_lost(stream, durable, lost)
        if worst:
            counts = self._metrics.unread_deleted
            counts[stream] = counts.get(stream, 0) + worst

    def _tell(self, stream: str, unread: Unread, left_s: float | None) -> None:
        self._metrics.unread_percents[stream] = unread.percent
        told, level = self._told.get(stream, 0), _level(unread.percent, left_s)
        if not level and unread.percent >= _OVER_PERCENT:
            level = told
        self._told[stream] = level
        fields = {
            "stream": stream,
            "durable": unread.durable,
            "percent": unread.percent,
            "limit": unread.limit,
        }
        if level > told:
            log.error(
                "A stream will soon delete messages that a consumer has not settled",
                **fields,
                **({} if left_s is None else {"within_s": round(left_s)}),
            )
        elif told and not level:
            log.info("A stream's consumers have caught up", **fields)

    def _forget(self, stream: str) -> None:
        self._metrics.unread_percents.pop(stream, None)
        self._looks.pop(stream, None)
        self._told.pop(stream, None)
        for key in [each for each in self._counted if each[0] == stream]:
            del self._counted[key]


def _level(percent: int, left_s: float | None) -> int:
    """How near: 2 for at once, 1 for soon, 0 for neither."""
    left_s = SOON_S + 1 if left_s is None else left_s
    if percent >= AT_ONCE_PERCENT or left_s <= AT_ONCE_S:
        return 2
    return int(percent >= SOON_PERCENT or left_s <= SOON_S)


def _log_lost(stream: str, durable: str, lost: Lost) -> None:
    log.error(
        "Messages were deleted from a stream before a consumer had settled them",
        stream=stream,
        durable=durable,
        **lost._asdict(),
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
