"""Any exception of a function fails only its own call, for every shape of function."""

import asyncio
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from runtime import Batch, Context, Event
from runtime.binding import service
from runtime.broker.connection import Broker
from runtime.errors import ConfigError, RequestFailed
from runtime.loader.options import fill_settings
from runtime.manifest.positions import Positions
from tests.support import workload
from tests.support.host import (
    Journal,
    fresh,
    letters_of,
    running_host,
    start_host,
    wait_for_letters,
)
from tests.support.servers import NatsServer

POISON = 13


class PanicException(BaseException):
    """The exception that Rust extensions raise for a panic."""


def _cancel_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


def _raise(make: Callable[[], BaseException]) -> Callable[[], None]:
    def act() -> None:
        raise make()

    return act


ENDINGS: dict[str, Callable[[], None]] = {
    "CancelledError": _raise(asyncio.CancelledError),
    "GeneratorExit": _raise(GeneratorExit),
    "KeyboardInterrupt": _raise(KeyboardInterrupt),
    "SystemExit": _raise(SystemExit),
    "PanicException": _raise(PanicException),
    "BaseExceptionGroup": _raise(lambda: BaseExceptionGroup("several", [KeyboardInterrupt()])),
    "own cancellation": _cancel_own_task,
}
NAMES = list(ENDINGS)
RAISED = NAMES[:-1]
"""All but the cancellation of a task of its own, which a thread and a validator do not have."""


class Order(BaseModel):
    number: int


class Breakable(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def _break(cls, value: int) -> int:
        _end(value)
        return value


journals: dict[str, Journal] = {}


def _end(number: int) -> None:
    if number >= POISON:
        ENDINGS[NAMES[number - POISON]]()


def _act(number: int, ctx: Context) -> None:
    _end(number)
    # A batch is called again in parts.
    if number < POISON and number not in journals[ctx.function].entries:
        journals[ctx.function].add(number)


async def on_event(event: Event[Order], ctx: Context) -> None:
    _act(event.data.number, ctx)
    await asyncio.sleep(0)


async def on_event_that_returns_at_once(event: Event[Order], ctx: Context) -> None:
    _act(event.data.number, ctx)


def on_event_in_thread(event: Event[Order], ctx: Context) -> None:
    _act(event.data.number, ctx)


async def on_batch(batch: Batch[Order], ctx: Context) -> None:
    for event in batch:
        _act(event.data.number, ctx)
    await asyncio.sleep(0)


def on_batch_in_thread(batch: Batch[Order], ctx: Context) -> None:
    for event in batch:
        _act(event.data.number, ctx)


async def on_breakable(event: Event[Breakable], ctx: Context) -> None:
    journals[ctx.function].add(event.data.number)


async def on_breakable_batch(batch: Batch[Breakable], ctx: Context) -> None:
    for event in batch:
        journals[ctx.function].add(event.data.number)


async def on_request(event: Event[Order], ctx: Context) -> dict[str, int]:
    _act(event.data.number, ctx)
    await asyncio.sleep(0)
    return {"number": event.data.number}


def on_request_in_thread(event: Event[Order], ctx: Context) -> dict[str, int]:
    _act(event.data.number, ctx)
    return {"number": event.data.number}


async def on_breakable_request(event: Event[Breakable], ctx: Context) -> dict[str, int]:
    return {"number": event.data.number}


async def on_tick(ctx: Context) -> None:
    journal = journals[ctx.function]
    journal.add(ctx.attempt)
    _end(POISON + ctx.attempt - 1 if ctx.attempt <= len(NAMES) else 0)
    await asyncio.sleep(0)


async def run(ctx: Context) -> None:
    journal = journals[ctx.function]
    journal.add("began")
    number = len(journal.entries) - 1
    _end(POISON + number if number < len(NAMES) else 0)
    await ctx.stopping.wait()


def _spec(handler: str, stream: str, **spec: Any) -> dict[str, Any]:
    return {
        "handler": f"{__name__}:{handler}",
        "consumer": {"stream": stream},
        "concurrency": 1,
        "retry": {"attempts": 2, "delay": "10ms", "jitter": 0},
        **spec,
    }


async def _expect_dead_letters(
    broker: Broker, url: str, handler: str, names: list[str], **spec: Any
) -> None:
    """Expect every failing message at its last attempt, and every other message done."""
    name, stream = fresh("odd"), fresh("ODD")
    journal = journals[name] = Journal()
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(url, {name: _spec(handler, stream, **spec)}, streams=streams) as host:
        for place in range(len(names)):
            await broker.publish(f"{stream}.a", b'{"number": %d}' % place)
            await broker.publish(f"{stream}.a", b'{"number": %d}' % (POISON + place))
        letters = await wait_for_letters(broker, name, len(names))
        # All workers still work.
        await broker.publish(f"{stream}.a", b'{"number": %d}' % len(names))
        await journal.wait(len(names) + 1)
        assert await host.probes.check_functions() is None

    assert sorted(journal.entries) == list(range(len(names) + 1))
    found = {json.loads(letter.message.data)["number"] - POISON: letter for letter in letters}
    for place, ending in enumerate(names):
        letter = found[place]
        assert (letter.code, letter.attempts) == ("ATTEMPTS_EXHAUSTED", 2)
        assert letter.error_type == "EndedItself"
        shown = "CancelledError" if ending == "own cancellation" else ending
        assert shown in letter.reason
        assert shown in letter.traceback
    assert len(await letters_of(broker, name)) == len(names)


@pytest.mark.parametrize("handler", ["on_event", "on_event_that_returns_at_once", "on_batch"])
async def test_whatever_an_async_function_raises_fails_its_message_alone(
    broker: Broker, nats_server: NatsServer, handler: str
) -> None:
    await _expect_dead_letters(broker, nats_server.url, handler, NAMES)


@pytest.mark.parametrize("handler", ["on_event_in_thread", "on_batch_in_thread"])
async def test_whatever_a_plain_function_raises_fails_its_message_alone(
    broker: Broker, nats_server: NatsServer, handler: str
) -> None:
    await _expect_dead_letters(broker, nats_server.url, handler, RAISED)


@pytest.mark.parametrize("handler", ["on_breakable", "on_breakable_batch"])
async def test_whatever_a_payload_s_validator_raises_fails_its_message_alone(
    broker: Broker, nats_server: NatsServer, handler: str
) -> None:
    await _expect_dead_letters(broker, nats_server.url, handler, RAISED)


async def test_whatever_an_ordered_function_raises_fails_its_message_alone(
    broker: Broker, nats_server: NatsServer
) -> None:
    ordered = {"ordered_by": {"token": 1}}
    await _expect_dead_letters(broker, nats_server.url, "on_event", NAMES, **ordered)


@pytest.mark.parametrize(
    ("handler", "names"),
    [("on_request", NAMES), ("on_request_in_thread", RAISED), ("on_breakable_request", RAISED)],
)
async def test_whatever_an_endpoint_raises_is_answered_and_the_next_request_served(
    broker: Broker, nats_server: NatsServer, handler: str, names: list[str]
) -> None:
    name = fresh("odd")
    journals[name] = Journal()
    spec = {
        "handler": f"{__name__}:{handler}",
        "endpoint": {"subject": f"{name}.call"},
        "concurrency": 1,
    }
    async with running_host(nats_server.url, {name: spec}):
        for place in range(len(names)):
            with pytest.raises(RequestFailed) as refused:
                await broker.request(f"{name}.call", b'{"number": %d}' % (POISON + place))
            assert (refused.value.code, refused.value.description) == (500, "INTERNAL")
        answer = await broker.request(f"{name}.call", b'{"number": 1}')

    assert answer.data == b'{"number":1}'


async def test_whatever_a_scheduled_function_raises_is_another_attempt(
    broker: Broker, nats_server: NatsServer
) -> None:
    name = fresh("odd")
    journal = journals[name] = Journal()
    spec = {
        "handler": f"{__name__}:on_tick",
        "schedule": {"cron": "0 0 1 1 *", "at_start": True},
        "retry": {"attempts": len(NAMES) + 1, "delay": "10ms", "factor": 1, "jitter": 0},
    }
    async with running_host(nats_server.url, {name: spec}):
        await journal.wait(len(NAMES) + 1)

    assert journal.entries == list(range(1, len(NAMES) + 2))
    assert await letters_of(broker, name) == []


async def test_whatever_a_service_raises_starts_it_again(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RESTART_FIRST_S", 0.01)
    monkeypatch.setattr(service, "RESTART_CAP_S", 0.01)
    name = fresh("odd")
    journal = journals[name] = Journal()
    spec = {"handler": f"{__name__}:run", "service": True}
    async with running_host(nats_server.url, {name: spec}) as host:
        await journal.wait(len(NAMES) + 1)
        assert await host.probes.check_functions() is None

    assert journal.entries == ["began"] * (len(NAMES) + 1)


@pytest.mark.parametrize("ending", NAMES)
async def test_a_start_hook_that_raises_keeps_the_host_from_starting_and_is_named(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    async def start(ctx: Context) -> None:
        ENDINGS[ending]()
        await asyncio.sleep(0)

    monkeypatch.setattr(workload, "start", start, raising=False)
    name = fresh("odd")
    spec = {"handler": "on_raw_request", "endpoint": {"subject": f"{name}.call"}}

    with pytest.raises(ConfigError, match=f"function {name}: its start"):
        await start_host(nats_server.url, {name: spec})


@pytest.mark.parametrize("ending", NAMES)
async def test_a_stop_hook_that_raises_keeps_no_other_from_running(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    stopped: list[str] = []

    async def stop(ctx: Context) -> None:
        stopped.append(ctx.function)
        ENDINGS[ending]()
        await asyncio.sleep(0)

    monkeypatch.setattr(workload, "stop", stop, raising=False)
    names = [fresh("odd"), fresh("odd")]
    specs = {
        name: {"handler": "on_raw_request", "endpoint": {"subject": f"{name}.call"}}
        for name in names
    }
    async with running_host(nats_server.url, specs):
        pass

    assert sorted(stopped) == sorted(names)


@pytest.mark.parametrize("ending", RAISED)
def test_settings_whose_validator_raises_are_a_problem_of_the_manifest(ending: str) -> None:
    class Settings(BaseModel):
        limit: int = 1

        @field_validator("limit")
        @classmethod
        def _break(cls, value: int) -> int:
            ENDINGS[ending]()
            return value

    module = ModuleType("odd")
    module.Settings = Settings  # type: ignore[attr-defined]

    filled, problems = fill_settings(module, {"limit": 2}, path=(), positions=Positions())

    assert filled is None
    assert len(problems) == 1
