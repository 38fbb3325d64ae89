"""The settling contract, each line of it for functions of every shape."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from runtime import Context, Reject, Retry
from runtime.binding import settlement
from runtime.broker.connection import Broker
from runtime.host import Host
from tests.host import (
    QUICK,
    Journal,
    consumer,
    eventually,
    fresh,
    letters_of,
    running_host,
    wait_for_letters,
    wait_until_settled,
)
from tests.servers import NatsServer
from tests.versions import has_message_schedules

PAYLOAD = b"\x00\xffthe original bytes"


@dataclass
class Bench:
    """One function of one shape with one message, whatever the shape's own words for it are."""

    shape: str
    broker: Broker
    url: str
    name: str = field(default_factory=lambda: fresh("work"))
    stream: str = field(default_factory=lambda: fresh("WORK"))

    @property
    def place(self) -> tuple[str, str]:
        """Stream and durable."""
        if self.shape == "schedule":
            return "SCHEDULES", f"schedule-{self.name}"
        return self.stream, self.name

    @property
    def payload(self) -> bytes:
        return b"" if self.shape == "schedule" else PAYLOAD

    @asynccontextmanager
    async def run(
        self, act: Callable[..., Any], *, threaded: bool = False, **spec: Any
    ) -> AsyncIterator[Host]:
        """Serve the function and send its message; `act` gets the context."""
        async with self.serve(act, threaded=threaded, **spec) as host:
            if self.shape != "schedule":
                await self.broker.publish(f"{self.stream}.a", PAYLOAD, headers={"Trace": "t1"})
            yield host

    @asynccontextmanager
    async def serve(
        self, act: Callable[..., Any], *, threaded: bool = False, **spec: Any
    ) -> AsyncIterator[Host]:
        handler = {"event": "on_event", "batch": "on_batch", "schedule": "on_tick"}[self.shape]
        stated: dict[str, Any] = {"handler": handler, "retry": QUICK, **spec}
        streams = {}
        if threaded:
            stated["handler"] += "_in_thread"
        if self.shape == "schedule":
            stated["schedule"] = {"every": "1h", "at_start": True}
        else:
            stated["consumer"] = {"stream": self.stream, **spec.get("consumer", {})}
            streams = {self.stream: {"subjects": [f"{self.stream}.>"]}}

        def does(ctx: Context, *_: object) -> Any:
            return act(ctx)

        async with running_host(
            self.url, {self.name: stated}, {self.name: does}, streams=streams
        ) as host:
            yield host

    async def wait_until_settled(self) -> None:
        await wait_until_settled(self.broker, *self.place)


@pytest.fixture(params=["event", "batch", "schedule"])
def bench(request: pytest.FixtureRequest, broker: Broker, nats_server: NatsServer) -> Bench:
    return Bench(request.param, broker, nats_server.url)


async def test_a_message_is_acknowledged_only_after_the_function_has_returned(bench: Bench) -> None:
    began, release = asyncio.Event(), asyncio.Event()

    async def act(ctx: Context) -> None:
        began.set()
        await release.wait()

    async with bench.run(act):
        await began.wait()
        held = await consumer(bench.broker, *bench.place)
        release.set()
        await bench.wait_until_settled()

    assert held["num_ack_pending"] == 1
    assert held["ack_floor"]["consumer_seq"] == 0
    assert not await letters_of(bench.broker, bench.name)


async def test_a_retry_comes_back_after_its_delay_as_the_next_attempt(bench: Bench) -> None:
    journal = Journal()

    async def act(ctx: Context) -> None:
        journal.add((ctx.attempt, asyncio.get_running_loop().time()))
        if ctx.attempt == 1:
            raise Retry("not yet", delay_s=0.5)

    async with bench.run(act):
        [(first, began_s), (second, again_s)] = await journal.wait(2)
        await bench.wait_until_settled()

    assert (first, second) == (1, 2)
    assert 0.5 <= again_s - began_s < 3
    assert not await letters_of(bench.broker, bench.name)


def _raise_an_error() -> None:
    raise ValueError("broken")


def _exit() -> None:
    sys.exit(3)


def _cancel_from_within() -> None:
    raise asyncio.CancelledError


def _stop_iteration() -> None:
    next(iter(()))


@pytest.mark.parametrize("fail", [_raise_an_error, _exit, _cancel_from_within, _stop_iteration])
@pytest.mark.parametrize("threaded", [False, True], ids=["async", "thread"])
async def test_whatever_a_function_raises_is_another_attempt_and_harms_nobody_else(
    bench: Bench, fail: Callable[[], None], threaded: bool
) -> None:
    journal = Journal()

    def act_in_thread(ctx: Context) -> None:
        journal.add(ctx.attempt)
        if ctx.attempt == 1:
            fail()

    async def act(ctx: Context) -> None:
        act_in_thread(ctx)

    async with bench.run(act_in_thread if threaded else act, threaded=threaded, concurrency=1):
        assert await journal.wait(2) == [1, 2]
        await bench.wait_until_settled()
    assert not await letters_of(bench.broker, bench.name)


async def test_a_call_that_is_too_long_is_cancelled_and_tried_again(bench: Bench) -> None:
    journal = Journal()

    async def act(ctx: Context) -> None:
        journal.add(ctx.attempt)
        if ctx.attempt == 1:
            try:
                await asyncio.Event().wait()
            finally:
                journal.add("cancelled")

    async with bench.run(act, timeout="200ms") as host:
        assert await journal.wait(3) == [1, "cancelled", 2]
        await bench.wait_until_settled()
        shown = host._metrics.function(bench.name)
    assert shown.timeouts == 1


async def test_a_thread_that_is_too_long_is_given_up_and_tried_again(bench: Bench) -> None:
    journal, release = Journal(), threading.Event()

    def act(ctx: Context) -> None:
        journal.add(ctx.attempt)
        if ctx.attempt == 1:
            release.wait(30)

    try:
        async with bench.run(act, threaded=True, timeout="200ms", concurrency=1) as host:
            assert await journal.wait(2) == [1, 2]
            await bench.wait_until_settled()
            shown = host._metrics.function(bench.name)
    finally:
        release.set()
    assert shown.timeouts == 1


async def test_a_rejected_message_is_a_dead_letter_at_once(bench: Bench) -> None:
    journal = Journal()

    async def act(ctx: Context) -> None:
        journal.add(ctx.attempt)
        raise Reject("UNKNOWN_ROUTE", "no such route")

    async with bench.run(act):
        [letter] = await wait_for_letters(bench.broker, bench.name)
        await bench.wait_until_settled()

    assert journal.entries == [1]
    assert (letter.code, letter.reason) == ("UNKNOWN_ROUTE", "no such route")
    assert (letter.message.stream, letter.attempts) == (bench.place[0], 1)
    assert letter.message.data == bench.payload
    if bench.shape != "schedule":
        assert letter.message.headers == {"Trace": "t1"}


async def test_the_last_failed_attempt_is_a_dead_letter_with_its_traceback(bench: Bench) -> None:
    journal = Journal()

    async def act(ctx: Context) -> None:
        journal.add(ctx.attempt)
        raise ValueError("broken for good")

    async with bench.run(act):
        [letter] = await wait_for_letters(bench.broker, bench.name)
        await bench.wait_until_settled()

    assert journal.entries == [1, 2, 3]
    assert (letter.code, letter.error_type) == ("ATTEMPTS_EXHAUSTED", "ValueError")
    assert (letter.reason, letter.attempts) == ("broken for good", 3)
    assert "in act" in letter.traceback
    assert letter.message.data == bench.payload


async def test_the_last_attempt_that_is_too_long_is_a_dead_letter(bench: Bench) -> None:
    async def act(ctx: Context) -> None:
        await asyncio.Event().wait()

    async with bench.run(act, timeout="100ms", retry={**QUICK, "attempts": 1}):
        [letter] = await wait_for_letters(bench.broker, bench.name)
        await bench.wait_until_settled()

    assert (letter.code, letter.attempts) == ("TIMEOUT", 1)


@pytest.mark.parametrize("handler", ["on_order", "on_orders"])
async def test_a_payload_that_does_not_fit_is_a_dead_letter_and_never_reaches_the_function(
    broker: Broker, nats_server: NatsServer, handler: str
) -> None:
    name, stream, journal = fresh("work"), fresh("WORK"), Journal()

    async def act(ctx: Context, given: Any) -> None:
        journal.add(given)

    spec = {"handler": handler, "consumer": {"stream": stream}, "retry": QUICK}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=streams):
        await broker.publish(f"{stream}.a", b'{"number": "a secret"}')
        [letter] = await wait_for_letters(broker, name)
        await wait_until_settled(broker, stream, name)

    assert not journal.entries
    assert (letter.code, letter.attempts) == ("PAYLOAD_INVALID", 1)
    assert letter.message.data == b'{"number": "a secret"}'
    assert "number" in letter.reason
    assert "a secret" not in letter.reason


@pytest.fixture
def quick_settlement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlement, "STORE_AGAIN_S", 0.2)
    monkeypatch.setattr(settlement, "PARK_FROM_S", 0.3)


async def test_a_long_wait_is_parked_and_comes_back_as_the_same_message(
    bench: Bench, quick_settlement: None
) -> None:
    journal, seen = Journal(), Journal()

    async def act(ctx: Context) -> None:
        journal.add(ctx.attempt)
        if bench.shape == "event" and ctx._message is not None:
            message = ctx._message
            seen.add((message.stream, message.sequence, message.subject, message.stored_at_ns,
                      message.data, dict(message.headers)))  # fmt: skip
        if ctx.attempt == 1:
            raise Retry("the other side is away", delay_s=1.0)

    async with bench.run(act) as host:
        await journal.wait(1)
        await bench.wait_until_settled()  # parked, it holds no slot while it waits
        waiting = len(journal.entries)
        assert await journal.wait(2) == [1, 2]
        await wait_until_settled(bench.broker, "MAILBOX", bench.name)
        counted = dict(host._metrics.function(bench.name).messages)

    parked = int(has_message_schedules(bench.broker))
    assert waiting == (1 if parked else 2)
    assert counted == {"acked": 1, "retried": 1 - parked, "parked": parked, "dead": 0}
    if bench.shape == "event":
        assert seen.entries[0] == seen.entries[1]
        assert seen.entries[0][4:] == (PAYLOAD, {"Trace": "t1"})


async def test_attempts_before_and_after_parking_count_together(
    bench: Bench, quick_settlement: None
) -> None:
    journal = Journal()

    async def act(ctx: Context) -> None:
        journal.add(ctx.attempt)
        raise Retry("still away", delay_s=0.1 if ctx.attempt == 2 else 0.5)

    async with bench.run(act):
        [letter] = await wait_for_letters(bench.broker, bench.name)
        await wait_until_settled(bench.broker, "MAILBOX", bench.name)

    assert journal.entries == [1, 2, 3]
    assert (letter.message.stream, letter.attempts) == (bench.place[0], 3)


@dataclass
class Refusal:
    """A way in which the dead-letter stream takes nothing, and back."""

    broker: Broker
    way: str

    async def begin(self) -> None:
        if self.way == "deleted":
            await self.broker.api("STREAM.DELETE.DEAD_LETTERS")
        else:
            await self._update(max_msgs=1, discard="new")
            await self.broker.publish("dead_letters.filler", b"")

    async def end(self, host: Host) -> None:
        if self.way == "deleted":
            await host._recreate()
        else:
            await self._update(max_msgs=-1, discard="old")

    async def _update(self, **fields: Any) -> None:
        found = await self.broker.api("STREAM.INFO.DEAD_LETTERS")
        await self.broker.api("STREAM.UPDATE.DEAD_LETTERS", {**found["config"], **fields})


@pytest.fixture
async def own_server(server_directory: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(server_directory / "nats")
    yield server
    server.stop()


@pytest.mark.parametrize("way", ["deleted", "full"])
@pytest.mark.parametrize("shape", ["event", "batch", "schedule"])
async def test_a_dead_letter_that_cannot_be_stored_keeps_the_message(
    own_server: NatsServer, quick_settlement: None, shape: str, way: str
) -> None:
    broker = await Broker.connect(own_server.url, name="test")
    bench, refusal, journal = Bench(shape, broker, own_server.url), Refusal(broker, way), Journal()
    released = asyncio.Event()

    async def act(ctx: Context) -> None:
        await released.wait()
        journal.add(ctx.attempt)
        raise Reject("BAD", "never")

    try:
        async with bench.run(act, retry={**QUICK, "attempts": 50}) as host:
            await refusal.begin()
            released.set()
            await journal.wait(3)
            held = await consumer(broker, *bench.place)
            await refusal.end(host)
            letters = await wait_for_letters(broker, bench.name)
            await bench.wait_until_settled()
    finally:
        await broker.close()

    assert held["num_ack_pending"] == 1
    assert [letter.code for letter in letters] == ["BAD"]
    assert letters[0].message.data == bench.payload


async def test_a_message_whose_dead_letter_was_refused_to_the_end_is_swept_up(
    own_server: NatsServer, quick_settlement: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.broker.advisories._RETRY_DELAY_S", 0.3)
    broker = await Broker.connect(own_server.url, name="test")
    bench, refusal, journal = (
        Bench("event", broker, own_server.url),
        Refusal(broker, "full"),
        Journal(),
    )

    async def act(ctx: Context) -> None:
        journal.add(ctx.attempt)
        raise ValueError("broken")

    async def advised() -> Any:
        return (await consumer(broker, "ADVISORIES", "sweeper"))["num_redelivered"]

    try:
        async with bench.serve(act) as host:
            await refusal.begin()
            await broker.publish(f"{bench.stream}.a", PAYLOAD)
            await journal.wait(3)
            await eventually(advised, "an advisory that could not be handled")
            await refusal.end(host)
            [letter] = await wait_for_letters(broker, bench.name)
    finally:
        await broker.close()

    assert letter.message.data == PAYLOAD
    assert letter.attempts == 3


async def test_messages_that_kill_their_process_end_as_dead_letters(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, stream, journal = fresh("work"), fresh("WORK"), Journal()
    spec = {
        "handler": "on_event",
        "consumer": {"stream": stream, "ack_wait": "1s"},
        "retry": {**QUICK, "attempts": 2},
    }
    streams = {stream: {"subjects": [f"{stream}.>"]}}

    async def act(ctx: Context, event: Any) -> None:
        journal.add(event.raw)

    # No host of ours takes the attempts: whoever pulled died, which a pull without an answer is.
    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=streams):
        pass
    await broker.publish(f"{stream}.a", PAYLOAD)
    for _ in range(2):
        await _take_and_die(broker, stream, name)
    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=streams):
        [letter] = await wait_for_letters(broker, name)

    assert not journal.entries
    assert (letter.code, letter.attempts) == ("MAX_DELIVERIES", 2)
    assert letter.message.data == PAYLOAD


async def _take_and_die(broker: Broker, stream: str, durable: str) -> None:
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    inbox = f"_INBOX.{fresh('dying')}"
    subscription = await broker.subscribe(inbox, arrived.put_nowait)
    request = b'{"batch": 1, "expires": 10000000000}'
    await broker.send(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}", request, inbox)
    async with asyncio.timeout(10):
        message = await arrived.get()
    assert message.reply, message.headers
    await subscription.unsubscribe()


async def test_a_message_that_a_dead_host_held_goes_to_another(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, stream, journal = fresh("work"), fresh("WORK"), Journal()
    spec = {"handler": "on_event", "consumer": {"stream": stream, "ack_wait": "1s"}, "retry": QUICK}
    streams = {stream: {"subjects": [f"{stream}.>"]}}

    async def act(ctx: Context, event: Any) -> None:
        journal.add((ctx.attempt, event.sequence, event.raw))

    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=streams):
        pass
    await broker.publish(f"{stream}.a", PAYLOAD)
    await _take_and_die(broker, stream, name)
    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=streams):
        assert await journal.wait(1) == [(2, 1, PAYLOAD)]
        await wait_until_settled(broker, stream, name)


@pytest.mark.parametrize("threaded", [False, True], ids=["async", "thread"])
@pytest.mark.parametrize("bench", ["event", "batch"], indirect=True)
async def test_a_message_that_takes_longer_than_its_ack_wait_is_not_delivered_again(
    bench: Bench, threaded: bool
) -> None:
    journal, release = Journal(), threading.Event()

    def act_in_thread(ctx: Context) -> None:
        journal.add(ctx.attempt)
        release.wait(30)

    async def act(ctx: Context) -> None:
        await asyncio.to_thread(act_in_thread, ctx)

    async def extended() -> bool:
        # Twice the ack wait has passed at the server without a redelivery.
        stored = (await bench.broker.api(f"STREAM.INFO.{bench.stream}"))["state"]["last_ts"]
        now = (await bench.broker.api(f"STREAM.INFO.{bench.stream}"))["ts"]
        return _seconds(now) - _seconds(stored) > 2.2

    does = act_in_thread if threaded else act
    spec: dict[str, Any] = {"consumer": {"ack_wait": "1s"}, "timeout": "24h"}
    async with bench.run(does, threaded=threaded, **spec):
        await journal.wait(1)
        await eventually(extended, "twice the ack wait")
        found = await consumer(bench.broker, *bench.place)
        release.set()
        await bench.wait_until_settled()

    assert found["num_redelivered"] == 0
    assert journal.entries == [1]


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp[:26].rstrip("Z") + "+00:00").timestamp()
