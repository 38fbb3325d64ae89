"""Rolling restarts: hosts are restarted one after the other while messages flow."""

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.broker.connection import Broker
from runtime.message import Message
from tests.support.documentation import free_port
from tests.support.host import consumer, fresh, letters_of, wait_until_settled
from tests.support.servers import NatsServer
from tests.support.serving import Served, serving

pytestmark = pytest.mark.timeout(300)

RESTARTS = int(os.environ.get("FAULT_RESTARTS", "4"))
GRACE_S = "0.5"
SHORT_S, LONG_S = 0.05, 1.2
AHEAD = 20
MODULE = """
import asyncio
from typing import Any
from runtime import Batch, Context, Event

async def work(event: Event[dict[str, Any]], ctx: Context) -> None:
    note = f"began.{ctx.function}"
    await ctx.publish_core(note, b"%d %d" % (event.data["number"], event.attempt))
    await asyncio.sleep(event.data["takes_s"])

async def work_batch(batch: Batch[dict[str, Any]], ctx: Context) -> None:
    await asyncio.gather(*(work(event, ctx) for event in batch))
"""


class Flow:
    """A steady flow of messages, slightly ahead of the slowest function, and a journal of calls."""

    def __init__(self, broker: Broker, stream: str, functions: list[str]) -> None:
        self.began: dict[str, list[tuple[int, int]]] = {name: [] for name in functions}
        self._broker = broker
        self._subject = f"{stream}.a"
        self._ended = False
        self._changed = asyncio.Event()

    def note(self, message: Message) -> None:
        number, attempt = map(int, message.data.split())
        self.began[message.subject.removeprefix("began.")].append((number, attempt))
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def run(self) -> int:
        """Publish until the flow is ended; returns the number of messages."""
        number = 0
        while not self._ended:
            if number >= min(map(len, self.began.values())) + AHEAD:
                self._changed.clear()
                await self._changed.wait()
                continue
            # One message in twenty takes longer than a host's drain may take.
            takes_s = LONG_S if number % 20 == 0 else SHORT_S
            data = json.dumps({"number": number, "takes_s": takes_s}).encode()
            await self._broker.publish(self._subject, data)
            number += 1
        return number


def write_project(folder: Path, stream: str, functions: dict[str, dict[str, Any]]) -> None:
    """Functions with two attempts; JSON is YAML."""
    stated = {
        name: {
            "handler": "rolling:work",
            "consumer": {"stream": stream},
            "retry": {"attempts": 2, "delay": "50ms"},
            **spec,
        }
        for name, spec in functions.items()
    }
    manifest = {"streams": {stream: {"subjects": [f"{stream}.>"]}}, "functions": stated}
    (folder / "rolling.py").write_text(MODULE)
    (folder / "app.yaml").write_text(json.dumps(manifest))


async def test_rolling_restarts_use_up_no_attempt(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    stream = fresh("ROLLING")
    names = {kind: f"{stream}_{kind}" for kind in ("single", "batch", "isolated")}
    functions: dict[str, dict[str, Any]] = {
        names["single"]: {"concurrency": 4},
        names["batch"]: {
            "handler": "rolling:work_batch",
            "batch": {"size": 5, "wait": "20ms"},
            "concurrency": 2,
        },
        names["isolated"]: {"isolate": True, "concurrency": 4},
    }
    write_project(tmp_path, stream, functions)
    environment = {
        "NATS_URL": nats_server.url,
        "DATABASE_URL": "unused",
        "RUNTIME_GRACE_S": GRACE_S,
    }
    flow = Flow(broker, stream, list(functions))
    await broker.subscribe("began.*", flow.note)
    handed_over = 0
    async with AsyncExitStack() as hosts:
        running = [
            await hosts.enter_async_context(serving(tmp_path, **environment)) for _ in range(2)
        ]
        for host in running:
            await wait_until_serving(host)
        flowing = asyncio.create_task(flow.run())
        for _ in range(RESTARTS):
            oldest = running.pop(0)
            oldest.send(signal.SIGTERM)
            assert await oldest.wait_until_ended() == 0, oldest.text
            handed_over += oldest.text.count("Not finished in time, given back")
            running.append(await hosts.enter_async_context(serving(tmp_path, **environment)))
            await wait_until_serving(running[-1])
        flow.end()
        published = await flowing
        for name in functions:
            await wait_until_settled(broker, stream, name)
            await wait_until_settled(broker, "MAILBOX", name)

    assert handed_over
    for name in functions:
        assert {number for number, _ in flow.began[name]} == set(range(published)), name
        assert {attempt for _, attempt in flow.began[name]} == {1}, name
        assert await letters_of(broker, name) == []
        assert (await consumer(broker, stream, name))["num_redelivered"] == 0


CALLERS = """
import asyncio
from runtime import Context, Event, NoAnswer

met = set()

async def ask(ctx: Context, subject: str) -> None:
    # Processes of a host start in no order: who was never there may still come.
    while True:
        try:
            await ctx.request(subject, b"{}", timeout_s=3)
            met.add(subject)
            return
        except NoAnswer:
            if subject in met:
                raise
            await asyncio.sleep(0.05)

async def page(event: Event[dict[str, str]], ctx: Context) -> dict[str, str]:
    await ctx.publish_core("rolling.asked", b"")
    for _ in range(3):
        await ask(ctx, "rolling.front")
    return {}

async def front(event: Event[dict[str, str]], ctx: Context) -> dict[str, str]:
    await ask(ctx, "rolling.inner")
    return {"answered_by": ctx.function}

async def inner(event: Event[dict[str, str]], ctx: Context) -> dict[str, str]:
    await asyncio.sleep(0.1)
    return {}

async def work(event: Event[bytes], ctx: Context) -> None:
    await ctx.publish_core("rolling.began", b"%d" % event.attempt)
    for _ in range(4):
        await ask(ctx, "rolling.front")
"""


def write_callers(folder: Path, stream: str) -> dict[str, dict[str, Any]]:
    """A gateway, endpoints that ask each other, one in a process of its own, and two consumers."""
    consumer_of = {"consumer": {"stream": stream}, "retry": {"attempts": 1}, "concurrency": 4}
    http = {"method": "GET", "path": "/page", "auth": "none"}
    work = {f"{stream}_{kind}": {"isolate": kind == "isolated"} for kind in ("shared", "isolated")}
    functions: dict[str, dict[str, Any]] = {
        name: {"handler": "callers:work", **consumer_of, **spec} for name, spec in work.items()
    }
    stated = {
        "gateway": {
            "handler": "functions.http_gateway:serve",
            "service": True,
            "settings": {
                "port": "${GATEWAY_PORT}",
                "registration_key": {"from_env": "RUNTIME_REGISTRATION_KEY"},
                "admin_key": "k" * 32,
                "bridge_key": "",
            },
        },
        "page": {
            "handler": "callers:page",
            "endpoint": {"subject": "rolling.page", "http": http},
        },
        "front": {"handler": "callers:front", "endpoint": {"subject": "rolling.front"}},
        "inner": {
            "handler": "callers:inner",
            "isolate": True,
            "endpoint": {"subject": "rolling.inner"},
        },
        **functions,
    }
    manifest = {"streams": {stream: {"subjects": [f"{stream}.>"]}}, "functions": stated}
    (folder / "callers.py").write_text(CALLERS)
    (folder / "app.yaml").write_text(json.dumps(manifest))
    return functions


class HttpClients:
    """Clients of the gateway, with one connection per request.

    Like a load balancer they send no further request from a moment before the host is told to end.
    Every request that has reached its function by then must be answered.
    """

    def __init__(self, port: int) -> None:
        self.asked = self.answered = 0
        self.failures: list[str] = []
        self.is_open = asyncio.Event()
        self.is_ended = False
        self._url = f"http://127.0.0.1:{port}/page"

    async def run(self) -> None:
        headers = {"Connection": "close"}
        async with httpx.AsyncClient(timeout=20, trust_env=False, headers=headers) as client:
            while True:
                await self.is_open.wait()
                if self.is_ended:
                    return
                self.asked += 1
                try:
                    answer = await client.get(self._url)
                except httpx.TransportError as failure:
                    self.failures.append(repr(failure))
                    continue
                if answer.status_code == httpx.codes.OK:
                    self.answered += 1
                else:
                    self.failures.append(f"{answer.status_code} {answer.text}")


@pytest.mark.long
async def test_functions_that_call_each_other_survive_restarts_of_their_only_host(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    stream, port = fresh("CALLERS"), free_port()
    functions = write_callers(tmp_path, stream)
    began: list[bytes] = []
    asked: list[bytes] = []
    await broker.subscribe("rolling.began", lambda message: began.append(message.data))
    await broker.subscribe("rolling.asked", lambda message: asked.append(message.data))
    environment = {
        "NATS_URL": nats_server.url,
        "DATABASE_URL": "unused",
        "ADMIN_KEY": "k" * 32,
        "GATEWAY_PORT": str(port),
        "RUNTIME_GRACE_S": "20",
        # The gateway logs the routes of its first round at this level.
        "RUNTIME_LOG_LEVEL": "DEBUG",
    }
    clients = HttpClients(port)
    visiting = [asyncio.create_task(clients.run()) for _ in range(8)]
    published = 0
    for _ in range(3):
        async with serving(tmp_path, **environment) as host:
            await host.wait_for_line("Ready", count=4)
            await host.wait_for_line("Routes were found.")
            clients.is_open.set()
            for _ in range(30):
                await broker.publish(f"{stream}.a", b"x")
                published += 1
            enough = clients.answered + 50
            while clients.answered < enough:  # noqa: ASYNC110 - only the clients know
                await asyncio.sleep(0.01)
            clients.is_open.clear()
            while len(asked) < clients.asked:  # noqa: ASYNC110 - the function alone knows
                await asyncio.sleep(0.001)
            host.send(signal.SIGTERM)
            assert await host.wait_until_ended() == 0, host.text
    clients.is_ended = True
    clients.is_open.set()
    await asyncio.gather(*visiting)

    assert clients.failures == []
    assert set(began) == {b"1"}
    left = 0
    for name in functions:
        assert await letters_of(broker, name) == []
        found = await consumer(broker, stream, name)
        assert found["num_redelivered"] == 0
        left += found["num_pending"]
    assert len(began) + left == published * len(functions)


async def wait_until_serving(host: Served) -> None:
    """Return when both worker processes are ready, including that of the isolated function."""
    await host.wait_for_line("Ready", count=3)
