"""The log has a line for each failed attempt: the error, its place, and the next attempt's time."""

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from structlog.testing import capture_logs

from runtime import Batch, Context, Event, Reject, Retry
from runtime.binding import service
from runtime.broker.connection import Broker
from runtime.context import Publication
from runtime.errors import RequestFailed
from runtime.observe import flood_gate
from tests.support.host import (
    eventually,
    fresh,
    running_host,
    wait_for_letters,
)
from tests.support.servers import NatsServer

SECRET = "correct-horse-battery"
HERE = "tests/integration/test_failures_in_the_log.py"


class Settings(BaseModel):
    api_key: SecretStr = SecretStr(SECRET)


class Order(BaseModel):
    number: int


class Login(BaseModel):
    pin: int


def _fail(number: int) -> None:
    raise ValueError(f"number {number} with {SECRET} for amqp://me:hunter2@there")


async def on_order(event: Event[Order], ctx: Context) -> None:
    _fail(event.data.number)


def on_order_in_thread(event: Event[Order], ctx: Context) -> None:
    _fail(event.data.number)


async def on_orders(batch: Batch[Order], ctx: Context) -> None:
    _fail(batch[0].data.number)


async def on_login(event: Event[bytes], ctx: Context) -> None:
    Login.model_validate({"pin": "my own pin"})


async def on_slow(event: Event[bytes], ctx: Context) -> None:
    await asyncio.Event().wait()


async def on_steered(event: Event[bytes], ctx: Context) -> None:
    if event.raw == b"reject":
        raise Reject("NO_ROUTE", "nobody wants it")
    raise Retry("not now", delay_s=0.01 if ctx.attempt == 1 else float("nan"))


async def on_tick(ctx: Context) -> None:
    _fail(0)


async def on_request(event: Event[Order], ctx: Context) -> bytes:
    _fail(event.data.number)
    return b""


async def run(ctx: Context) -> None:
    _fail(0)


Lines = list[Any]


def _failures(lines: Lines) -> Lines:
    return [line for line in lines if line.get("log_level") != "debug" and "function" in line]


async def _one_message(broker: Broker, url: str, handler: str, data: bytes, **spec: Any) -> Lines:
    """The log lines of one message that ends as a dead letter."""
    name, stream = fresh("seen"), fresh("SEEN")
    stated = {
        "handler": f"{__name__}:{handler}",
        "consumer": {"stream": stream},
        "retry": {"attempts": 2, "delay": "20ms", "jitter": 0},
        **spec,
    }
    with capture_logs() as lines:
        async with running_host(
            url, {name: stated}, streams={stream: {"subjects": [f"{stream}.>"]}}
        ):
            await broker.publish(f"{stream}.a", data)
            await wait_for_letters(broker, name)
    found = _failures(lines)
    assert all(line["function"] == name for line in found)
    return found


@pytest.mark.parametrize("handler", ["on_order", "on_order_in_thread", "on_orders"])
async def test_an_attempt_that_failed_is_a_warning_and_the_last_an_error_with_its_traceback(
    broker: Broker, nats_server: NatsServer, handler: str
) -> None:
    first, last = await _one_message(broker, nats_server.url, handler, b'{"number": 7}')

    assert (first["event"], first["log_level"]) == ("An attempt failed", "warning")
    assert first["error"].startswith("ValueError: number 7 with ***")
    assert first["where"].startswith(f"{HERE}:")
    assert (first["attempt"], first["again_in_s"], first["sequence"]) == ("1 of 2", 0.0, 1)
    assert "exc_info" not in first
    assert last["event"] == "Message given up to the dead letters"
    assert (last["log_level"], last["attempt"]) == ("error", "2 of 2")
    assert last["code"] == "ATTEMPTS_EXHAUSTED"
    assert last["where"] == first["where"]
    # The traceback begins in the function.
    assert last["exc_info"][2].tb_frame.f_code.co_name == handler


async def test_the_secrets_of_the_settings_stand_in_no_dead_letter(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, stream = fresh("seen"), fresh("SEEN")
    spec = {
        "handler": f"{__name__}:on_order",
        "consumer": {"stream": stream},
        "retry": {"attempts": 1},
    }
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, {name: spec}, streams=streams):
        await broker.publish(f"{stream}.a", b'{"number": 1}')
        [letter] = await wait_for_letters(broker, name)

    assert "number 1 with ***" in letter.reason
    assert SECRET not in letter.reason + letter.traceback


async def test_a_value_that_pydantic_refuses_inside_a_function_is_not_quoted(
    broker: Broker, nats_server: NatsServer
) -> None:
    first, _ = await _one_message(broker, nats_server.url, "on_login", b"x")

    assert first["error"].startswith("ValidationError: Login: pin: Input should be a valid integer")
    assert "my own pin" not in first["error"]


async def test_a_call_that_was_too_long_is_told_with_the_line_at_which_it_waited(
    broker: Broker, nats_server: NatsServer
) -> None:
    first, last = await _one_message(broker, nats_server.url, "on_slow", b"x", timeout="50ms")

    assert first["error"].startswith("TimeLimitExceeded: the function ran longer than its limit")
    assert first["where"].startswith(f"{HERE}:")
    assert last["code"] == "TIMEOUT"


async def test_a_payload_that_does_not_fit_says_field_and_rule_and_not_the_value(
    broker: Broker, nats_server: NatsServer
) -> None:
    [line] = await _one_message(broker, nats_server.url, "on_order", b'{"number": "my own pin"}')

    assert (line["log_level"], line["code"]) == ("warning", "PAYLOAD_INVALID")
    assert line["reason"].startswith("number: Input should be a valid integer")
    assert "my own pin" not in line["reason"]


async def test_a_rejected_message_is_one_warning_with_code_and_reason(
    broker: Broker, nats_server: NatsServer
) -> None:
    [line] = await _one_message(broker, nats_server.url, "on_steered", b"reject")

    assert (line["log_level"], line["code"]) == ("warning", "NO_ROUTE")
    assert line["reason"] == "nobody wants it"


async def test_a_retry_is_told_without_a_traceback_and_a_bad_delay_is_a_warning(
    broker: Broker, nats_server: NatsServer
) -> None:
    first, second, last = await _one_message(
        broker,
        nats_server.url,
        "on_steered",
        b"retry",
        retry={"attempts": 3, "delay": "20ms", "jitter": 0},
    )

    assert (first["log_level"], first["reason"]) == ("info", "not now")
    assert second["log_level"] == "warning"
    assert "not a number of seconds" in second["note"]
    assert (last["log_level"], last["error"]) == ("error", "Retry: not now")
    assert "exc_info" not in last


async def test_a_flood_of_one_failure_is_a_few_lines_and_a_number(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flood_gate, "WINDOW_S", 2.0)
    name, stream = fresh("seen"), fresh("SEEN")
    spec = {
        "handler": f"{__name__}:on_order",
        "consumer": {"stream": stream},
        "retry": {"attempts": 2, "delay": "1h"},
    }
    streams = {stream: {"subjects": [f"{stream}.>"]}}

    async def is_summed_up() -> bool:
        return any("failures" in line for line in lines)

    with capture_logs() as lines:
        async with running_host(nats_server.url, {name: spec}, streams=streams):
            await broker.publish_many(
                [Publication(f"{stream}.a", b'{"number": 1}', f"{n}") for n in range(100)]
            )
            await eventually(is_summed_up, "the number of those that were not logged")

    found = _failures(lines)
    assert [line["event"] for line in found].count("An attempt failed") == flood_gate.LINES
    summary = found[-1]
    assert (summary["failures"], summary["error_type"]) == (95, "ValueError")


async def test_a_tick_that_fails_is_told_like_a_message(
    broker: Broker, nats_server: NatsServer
) -> None:
    name = fresh("seen")
    spec = {
        "handler": f"{__name__}:on_tick",
        "schedule": {"cron": "0 0 1 1 *", "at_start": True},
        "retry": {"attempts": 2, "delay": "20ms", "jitter": 0},
    }
    with capture_logs() as lines:
        async with running_host(nats_server.url, {name: spec}):
            await wait_for_letters(broker, name)

    first, last = _failures(lines)
    assert (first["log_level"], first["attempt"]) == ("warning", "1 of 2")
    assert (last["log_level"], last["attempt"]) == ("error", "2 of 2")


async def test_a_request_that_fails_is_told_with_the_id_that_its_caller_got(
    broker: Broker, nats_server: NatsServer
) -> None:
    name = fresh("seen")
    spec = {"handler": f"{__name__}:on_request", "endpoint": {"subject": f"{name}.call"}}
    with capture_logs() as lines:
        async with running_host(nats_server.url, {name: spec}):
            with pytest.raises(RequestFailed) as refused:
                await broker.request(f"{name}.call", b'{"number": 3}')

    [line] = _failures(lines)
    assert (line["event"], line["log_level"]) == ("Request failed", "error")
    assert line["event_id"] in refused.value.body.decode()
    assert line["error"].startswith("ValueError: number 3")
    assert line["where"].startswith(f"{HERE}:")


async def test_a_service_that_crashes_is_told_with_its_line(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RESTART_FIRST_S", 0.01)
    name = fresh("seen")
    spec = {"handler": f"{__name__}:run", "service": True}

    async def has_crashed_twice() -> bool:
        return len(_failures(lines)) >= 2

    with capture_logs() as lines:
        async with running_host(nats_server.url, {name: spec}):
            await eventually(has_crashed_twice, "the second crash")

    line = _failures(lines)[0]
    assert (line["event"], line["log_level"]) == ("Service crashed, it is started again", "error")
    assert line["where"].startswith(f"{HERE}:")
    assert line["again_in_s"] == 0.0
