"""Endpoints over NATS: replies, errors, and the internals that no caller may see."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from runtime import Context, PublishFailed, Reject, Retry
from runtime.broker.connection import Broker
from runtime.errors import RequestFailed, Unavailable
from tests.support.host import Journal, fresh, running_host, start_host
from tests.support.servers import NatsServer
from tests.support.workload import behaviours

SECRET = "postgresql://user:hunter2@db/prod"


def _spec(name: str, handler: str = "on_request", **spec: Any) -> dict[str, Any]:
    return {name: {"handler": handler, "endpoint": {"subject": f"{name}.call"}, **spec}}


async def _refused(broker: Broker, name: str, data: bytes = b"{}") -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        await broker.request(f"{name}.call", data)
    return caught.value


@pytest.mark.parametrize("handler", ["on_request", "on_request_in_thread"])
async def test_what_the_function_returns_is_the_reply(
    broker: Broker, nats_server: NatsServer, handler: str
) -> None:
    name = fresh("ask")

    def answer(ctx: Context, event: Any) -> Any:
        return {"doubled": event.data.number * 2, "attempt": ctx.attempt}

    async def answer_async(ctx: Context, event: Any) -> Any:
        return answer(ctx, event)

    act = answer if handler.endswith("thread") else answer_async
    async with running_host(nats_server.url, _spec(name, handler), {name: act}):
        full = await broker.request(f"{name}.call", b'{"number": 21}')
        empty = await broker.request(f"{name}.call", b"")

    assert json.loads(full.data) == {"doubled": 42, "attempt": 1}
    # The function declares no schema of its reply that would say so.
    assert full.headers["Content-Type"] == "application/json"
    assert json.loads(empty.data) == {"doubled": 0, "attempt": 1}


async def test_raw_bytes_go_in_and_out_as_they_are(broker: Broker, nats_server: NatsServer) -> None:
    name = fresh("ask")

    async def answer(ctx: Context, event: Any) -> bytes:
        return bytes(event.data[::-1])

    async with running_host(nats_server.url, _spec(name, "on_raw_request"), {name: answer}):
        reply = await broker.request(f"{name}.call", b"\x00\xffab")

    assert reply.data == b"ba\xff\x00"
    assert "Content-Type" not in reply.headers


def _raise(failure: Exception) -> Callable[..., Any]:
    async def act(ctx: Context, event: Any) -> Any:
        raise failure

    return act


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (Reject("UNKNOWN_DEVICE", "no such device", status=404), 404, "UNKNOWN_DEVICE"),
        (Reject("BAD_NAME", "a bad name"), 400, "BAD_NAME"),
        (ValueError(SECRET), 500, "INTERNAL"),
        (Retry(SECRET, delay_s=7), 503, "TRY_AGAIN"),
        (PublishFailed(SECRET, SECRET), 503, "UNAVAILABLE"),
        (Unavailable("PostgreSQL", SECRET), 503, "UNAVAILABLE"),
        (asyncpg.CannotConnectNowError(SECRET), 503, "UNAVAILABLE"),
        (asyncpg.UniqueViolationError(SECRET), 500, "INTERNAL"),
        (RequestFailed("other.call", 409, "CONFLICT"), 409, "CONFLICT"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
async def test_a_failure_is_a_code_and_an_event_id_and_nothing_of_the_inside(
    broker: Broker, nats_server: NatsServer, failure: Exception, status: int, code: str
) -> None:
    name = fresh("ask")
    async with running_host(nats_server.url, _spec(name), {name: _raise(failure)}):
        refusal = await _refused(broker, name)

    body = json.loads(refusal.body)
    assert (refusal.code, refusal.description) == (status, code)
    assert body.keys() == {"code", "detail", "event_id"}
    assert body["code"] == code
    assert len(body["event_id"]) == 16
    assert b"hunter2" not in refusal.body
    assert "hunter2" not in refusal.description


async def test_a_request_that_does_not_fit_names_the_field_and_not_the_value(
    broker: Broker, nats_server: NatsServer
) -> None:
    name = fresh("ask")
    async with running_host(nats_server.url, _spec(name), {name: _raise(ValueError())}):
        refusal = await _refused(broker, name, b'{"number": "hunter2"}')
        broken = await _refused(broker, name, b"{")

    assert (refusal.code, refusal.description) == (422, "PAYLOAD_INVALID")
    assert b"number" in refusal.body
    assert b"hunter2" not in refusal.body
    assert broken.code == 422


@pytest.mark.parametrize("handler", ["on_request", "on_request_in_thread"])
async def test_a_request_that_takes_too_long_is_a_504(
    broker: Broker, nats_server: NatsServer, handler: str
) -> None:
    name, release = fresh("ask"), threading.Event()

    def wait_in_thread(ctx: Context, event: Any) -> None:
        release.wait(20)

    async def wait(ctx: Context, event: Any) -> None:
        await asyncio.Event().wait()

    act = wait_in_thread if handler.endswith("thread") else wait
    spec = _spec(name, handler, timeout="100ms")
    async with running_host(nats_server.url, spec, {name: act}) as host:
        refusal = await _refused(broker, name)
        timeouts = host._metrics.function(name).timeouts
        release.set()

    assert (refusal.code, refusal.description) == (504, "TIMEOUT")
    assert timeouts == 1


@pytest.mark.parametrize("ending", [SystemExit(3), asyncio.CancelledError()])
async def test_a_function_that_would_end_the_host_ends_its_own_request_alone(
    broker: Broker, nats_server: NatsServer, ending: BaseException
) -> None:
    name, calls = fresh("ask"), Journal()

    async def act(ctx: Context, event: Any) -> Any:
        calls.add(1)
        if len(calls.entries) == 1:
            raise ending
        return {"fine": True}

    async with running_host(nats_server.url, _spec(name, concurrency=1), {name: act}):
        refusal = await _refused(broker, name)
        reply = await broker.request(f"{name}.call", b"{}")

    assert (refusal.code, refusal.description) == (500, "INTERNAL")
    assert json.loads(reply.data) == {"fine": True}


async def test_retry_after_tells_how_long_to_wait(broker: Broker, nats_server: NatsServer) -> None:
    name = fresh("ask")
    found: asyncio.Queue[Any] = asyncio.Queue()
    inbox = f"_INBOX.{fresh('reply')}"
    async with running_host(nats_server.url, _spec(name), {name: _raise(Retry(delay_s=7))}):
        await broker.subscribe(inbox, found.put_nowait)
        await broker.send(f"{name}.call", b"{}", inbox)
        answer = await asyncio.wait_for(found.get(), 60)

    assert answer.headers["Retry-After"] == "7"
    assert answer.headers["Nats-Service-Error-Code"] == "503"


async def test_a_full_endpoint_answers_429_and_serves_those_it_took(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, release, began = fresh("ask"), asyncio.Event(), Journal()

    async def act(ctx: Context, event: Any) -> Any:
        began.add(event.data.number)
        await release.wait()
        return event.data.number

    spec = _spec(name, concurrency=2)
    spec[name]["endpoint"]["max_waiting"] = 1
    async with running_host(nats_server.url, spec, {name: act}):
        asked = [
            asyncio.create_task(broker.request(f"{name}.call", b'{"number": %d}' % number))
            for number in range(3)
        ]
        await began.wait(2)
        refusal = await _refused(broker, name, b'{"number": 9}')
        release.set()
        replies = [json.loads((await task).data) for task in asked]

    assert (refusal.code, replies) == (429, [0, 1, 2])


async def test_a_draining_host_answers_those_who_asked(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, release, began = fresh("ask"), asyncio.Event(), Journal()

    async def act(ctx: Context, event: Any) -> Any:
        began.add(1)
        await release.wait()
        return {"done": True}

    behaviours[name] = act
    host = await start_host(nats_server.url, _spec(name))
    asked = asyncio.create_task(broker.request(f"{name}.call", b"{}"))
    await began.wait(1)
    draining = asyncio.create_task(host.drain(10))
    asyncio.get_running_loop().call_later(0.05, release.set)
    reply = await asked
    await draining

    assert json.loads(reply.data) == {"done": True}
    with pytest.raises(Unavailable, match="no responders"):
        await broker.request(f"{name}.call", b"{}")


async def test_two_hosts_share_the_requests(broker: Broker, nats_server: NatsServer) -> None:
    name, calls = fresh("ask"), Journal()

    async def act(ctx: Context, event: Any) -> Any:
        calls.add(event.data.number)
        return event.data.number

    spec = _spec(name)
    async with (
        running_host(nats_server.url, spec, {name: act}),
        running_host(nats_server.url, spec, {name: act}),
    ):
        for number in range(20):
            await broker.request(f"{name}.call", b'{"number": %d}' % number)

    assert calls.entries == list(range(20))
