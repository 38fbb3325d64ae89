"""The host makes any text, code, status and delay of a function safe before it is sent."""

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from runtime import Context, Reject, Retry
from runtime.broker.connection import Broker
from runtime.broker.mailbox import Mailbox
from runtime.errors import RequestFailed
from runtime.safe_text import CODE_CHARACTERS, DELAY_CAP_S, REASON_CHARACTERS
from tests.support.host import (
    Journal,
    eventually,
    fresh,
    running_host,
    wait_for_letters,
    wait_until_settled,
)
from tests.support.servers import NatsServer
from tests.support.versions import has_message_schedules


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class StrangeTextError(Exception):
    def __str__(self) -> str:
        return "half \ud800 of a pair, NUL \x00 and\r\na line break"


def _named(name: str) -> type[Exception]:
    return type(name, (Exception,), {})


ODD: list[Any] = [
    "half \ud800 of a pair",
    "NUL \x00",
    "two\r\nlines\n-ERR 'x'\r\n",
    "x" * 10_000_000,
    b"bytes \xff",
    17,
    None,
    {"a": ["dict"]},
    Unprintable(),
    "\u2028\x85\x1b[31m",
]
RAISED: list[Callable[[], Exception]] = [
    *[lambda odd=odd: Reject(odd, "why") for odd in ODD],
    *[lambda odd=odd: Reject("CODE", odd) for odd in ODD],
    *[lambda odd=odd: ValueError(odd) for odd in ODD],
    *[lambda odd=odd: Retry(odd, delay_s=60) for odd in ODD[:4]],
    UnprintableError,
    StrangeTextError,
    _named("Two\nLines\x01"),
    _named("N" * 100_000),
]


@pytest.mark.parametrize("more", [{}, {"ordered_by": {"token": 2}}])
async def test_whatever_is_raised_ends_as_one_dead_letter_after_one_call(
    broker: Broker, nats_server: NatsServer, more: dict[str, Any]
) -> None:
    name, stream, journal = fresh("odd"), fresh("ODD"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        journal.add(event.sequence)
        make = RAISED[int(event.raw)]
        raise make()

    spec = {"handler": "on_event", "consumer": {"stream": stream}, "retry": {"attempts": 1}, **more}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    with capture_logs():
        async with running_host(nats_server.url, {name: spec}, {name: act}, streams=streams):
            for number in range(len(RAISED)):
                await broker.publish(f"{stream}.{number}", b"%d" % number)
            letters = await wait_for_letters(broker, name, len(RAISED))
            await wait_until_settled(broker, stream, name)

    assert sorted(journal.entries) == list(range(1, len(RAISED) + 1))
    rejected = range(2 * len(ODD))
    for letter in letters:
        if int(letter.message.data) in rejected:
            assert letter.error_type == "Reject"
        assert 0 < len(letter.code) <= CODE_CHARACTERS
        assert len(letter.reason) <= REASON_CHARACTERS
        (letter.code + letter.reason + letter.error_type + letter.traceback).encode()
        assert "\x00" not in letter.reason + letter.traceback


async def test_a_parked_message_keeps_a_reason_that_can_be_read(
    broker: Broker, nats_server: NatsServer
) -> None:
    if not has_message_schedules(broker):
        return  # Parking needs nats-server 2.12.
    name, stream = fresh("odd"), fresh("ODD")

    async def act(ctx: Context, event: Any) -> None:
        raise Retry(ODD[int(event.raw)], delay_s=3600)

    spec = {"handler": "on_event", "consumer": {"stream": stream}, "retry": {"attempts": 2}}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=streams):
        for number in range(len(ODD)):
            await broker.publish(f"{stream}.{number}", b"%d" % number)
        await wait_until_settled(broker, stream, name)
        parked = [each async for each in Mailbox(broker).list_parked(name)]

    assert len(parked) == len(ODD)
    assert all(each.reason for each in parked)


@pytest.mark.parametrize("status", [None, "404", 3.5, True, 0, 200, 10**9, -1])
async def test_an_endpoint_s_status_that_is_no_error_s_becomes_400(
    broker: Broker, nats_server: NatsServer, status: Any
) -> None:
    name = fresh("odd")

    async def act(ctx: Context, event: Any) -> bytes:
        raise Reject("NO", "never", status=status)

    spec = {"handler": "on_raw_request", "endpoint": {"subject": f"{name}.call"}}
    async with running_host(nats_server.url, {name: spec}, {name: act}):
        with pytest.raises(RequestFailed) as refused:
            await broker.request(f"{name}.call", b"")

    assert (refused.value.code, refused.value.description) == (400, "NO")


async def test_an_endpoint_answers_whatever_it_raises(
    broker: Broker, nats_server: NatsServer
) -> None:
    name = fresh("odd")

    async def act(ctx: Context, event: Any) -> bytes:
        make = RAISED[int(event.raw)]
        raise make()

    spec = {"handler": "on_raw_request", "endpoint": {"subject": f"{name}.call"}}
    with capture_logs():
        async with running_host(nats_server.url, {name: spec}, {name: act}):
            for number in range(len(RAISED)):
                with pytest.raises(RequestFailed) as refused:
                    await broker.request(f"{name}.call", b"%d" % number)
                assert refused.value.code in (400, 500, 503)
                refused.value.body.decode()


LONG: list[Any] = [math.inf, 1e12, 10**400, 9_000_000_000.0, timedelta.max]
NONE: list[Any] = [math.nan, True, "5", [1]]
SHORT: list[Any] = [-1, -math.inf, 0, timedelta(0)]


@pytest.mark.parametrize("more", [{}, {"ordered_by": {"token": 2}}])
async def test_a_delay_is_bounded_whatever_was_asked_for(
    broker: Broker, nats_server: NatsServer, more: dict[str, Any]
) -> None:
    """A message with a delay does not come back at once, and one without does not wait."""
    name, stream, journal = fresh("odd"), fresh("ODD"), Journal()
    delays = [*LONG, *NONE, *SHORT]

    async def act(ctx: Context, event: Any) -> None:
        journal.add((int(event.raw), ctx.attempt))
        if ctx.attempt == 1:
            raise Retry("later", delay_s=delays[int(event.raw)])

    spec = {
        "handler": "on_event",
        "consumer": {"stream": stream},
        "retry": {"attempts": 9, "delay": "200ms", "jitter": 0},
        **more,
    }
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    again = len(NONE) + len(SHORT)
    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=streams, grace_s=1):
        for number in range(len(delays)):
            await broker.publish(f"{stream}.{number}", b"%d" % number)
        await journal.wait(len(delays) + again)
        if not more and has_message_schedules(broker):

            async def look() -> list[Any] | None:
                found = [each async for each in Mailbox(broker).list_parked(name)]
                return found if len(found) == len(LONG) else None

            for parked in await eventually(look, "the parked ones") or []:
                left_s = parked.due_at.timestamp() - parked.message.stored_at_ns / 1e9
                assert left_s == pytest.approx(DELAY_CAP_S, abs=60)

    assert sorted(journal.entries) == sorted(
        [(number, 1) for number in range(len(delays))]
        + [(number, 2) for number in range(len(LONG), len(delays))]
    )
