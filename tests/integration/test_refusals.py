"""After any error that a server sends, the host rebuilds its connection."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import structlog

from runtime import Context, Event
from runtime.broker import client as client_module
from runtime.broker.connection import Broker
from runtime.errors import Unavailable
from runtime.message import Message
from tests.support.host import fresh, running_host
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer, nats_url

DEADLINE_S = 60.0
ERRORS = [
    "User Authentication Expired", "User Authentication Revoked", "Account Authentication Expired",
    "Authorization Violation", "Authentication Timeout", "maximum connections exceeded",
    "maximum account active connections exceeded", "maximum subscriptions exceeded",
    "Slow Consumer", "Server Shutdown", "Parser Error", "Unknown Protocol Operation",
    "Maximum Payload Violation", "Maximum Control Line Exceeded", "Stale Connection",
    "Invalid Client Protocol", "Invalid Publish Subject", "Invalid Subject",
    "Secure Connection - TLS Required", "No Responders Requires Headers Support",
    "Failed Account Registration", "An error that nobody has thought of yet", "",
]  # fmt: skip


class Rebuilt:
    """Counts the rebuilt connections of a broker; `wait` for one."""

    def __init__(self, broker: Broker) -> None:
        self._changed = asyncio.Event()
        self._broker = broker
        broker.on_reconnect(self._changed.set)

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self._broker.reconnects < count:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def proxied(nats_server: NatsServer) -> AsyncIterator[tuple[Broker, Proxy]]:
    """A connection through a proxy that can speak for the server."""
    async with Proxy(nats_server.port) as proxy:
        broker = await Broker.connect(nats_url(proxy.port), name="proxied")
        yield broker, proxy
        await broker.close()


@pytest.mark.parametrize("error", ERRORS)
async def test_after_any_error_of_the_server_the_connection_is_rebuilt(
    proxied: tuple[Broker, Proxy], error: str
) -> None:
    broker, proxy = proxied
    rebuilt = Rebuilt(broker)
    arrived: asyncio.Queue[Message] = asyncio.Queue()
    subscription = await broker.subscribe("still.here", arrived.put_nowait)
    await broker.flush()

    with structlog.testing.capture_logs() as lines:
        proxy.say(f"-ERR '{error}'\r\n".encode())
        await rebuilt.wait(1)

    await broker.publish_core("still.here", b"x")
    assert (await asyncio.wait_for(arrived.get(), DEADLINE_S)).data == b"x"
    await broker.ping()
    told = [line for line in lines if line["event"] == "NATS ends the connection"]
    assert [line["said"] for line in told] == [error.lower()]
    await subscription.unsubscribe()


async def test_what_this_user_may_not_do_is_told_and_ends_nothing(
    proxied: tuple[Broker, Proxy],
) -> None:
    broker, proxy = proxied

    with structlog.testing.capture_logs() as lines:
        proxy.say(b"-ERR 'Permissions Violation for Publish to \"a.b\"'\r\n")
        await broker.flush()
        await broker.ping()

    assert broker.reconnects == 0
    assert [line["event"] for line in lines] == ["NATS refused an operation of this user"]


@pytest.mark.parametrize(
    "command",
    [
        b"PUB a 99999999\r\n",
        b"PUB " + b"a" * 5000 + b" 0\r\n\r\n",
        b"NONSENSE\r\n",
        b"PUB a b c d e f\r\n",
    ],
)
async def test_after_an_error_of_a_real_server_the_connection_is_rebuilt(
    broker: Broker, command: bytes
) -> None:
    rebuilt = Rebuilt(broker)

    await broker._client._write(command)
    await rebuilt.wait(1)

    await broker.ping()


async def test_a_line_that_no_server_says_ends_in_another_connection(
    proxied: tuple[Broker, Proxy],
) -> None:
    broker, proxy = proxied
    rebuilt = Rebuilt(broker)

    for count, line in enumerate((b"HELLO\r\n", b"INFO {\r\n", b"MSG a x y\r\n"), start=1):
        proxy.say(line)
        await rebuilt.wait(count)
        await broker.ping()


class RefusingServer:
    """A server that sends INFO, and answers every CONNECT with an error."""

    def __init__(self, error: str) -> None:
        self._error = error
        self._reached = asyncio.Event()
        self.came_at_s: list[float] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._refuse, "127.0.0.1", 0)
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.came_at_s) < count:
                self._reached.clear()
                await self._reached.wait()

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came_at_s.append(time.monotonic())
        self._reached.set()
        writer.write(b'INFO {"version":"2.15.1","max_payload":1024,"headers":true}\r\n')
        await reader.readline()
        writer.write(f"-ERR '{self._error}'\r\n".encode("latin-1"))
        await writer.drain()
        writer.close()


async def test_a_server_that_refuses_us_again_and_again_is_asked_less_and_less_often() -> None:
    server = RefusingServer("Authorization Violation")
    url = await server.start()

    connecting = asyncio.create_task(Broker.connect(url, name="refused", timeout_s=DEADLINE_S))
    await server.wait(5)
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    await server.stop()

    pauses_s = [b - a for a, b in zip(server.came_at_s, server.came_at_s[1:], strict=False)]
    assert pauses_s[-1] > 2 * pauses_s[0]


async def test_a_refusal_that_is_no_text_is_a_refusal_like_any_other() -> None:
    server = RefusingServer("\xff\xfe")
    url = await server.start()

    with pytest.raises(Unavailable, match="no connection within"):
        await Broker.connect(url, name="refused", timeout_s=2.0)

    assert len(server.came_at_s) > 1
    await server.stop()


async def test_a_connection_lives_on_when_its_server_refuses_it_for_a_while(
    nats_server: NatsServer,
) -> None:
    broker = await Broker.connect(nats_server.url, name="test")
    rebuilt = Rebuilt(broker)
    refusing = RefusingServer("maximum connections exceeded")
    url = await refusing.start()
    client = broker._client
    pool = list(client._server_pool)

    client._server_pool.clear()
    client._setup_server_pool([url])  # This server refuses the client, which knows no other.
    await client._process_err("server shutdown")
    await refusing.wait(3)
    client._server_pool.extend(pool)
    await rebuilt.wait(1)

    await broker.ping()
    await broker.close()
    await refusing.stop()


async def test_whatever_goes_wrong_while_connecting_is_tried_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuilt = Rebuilt(broker)
    monkeypatch.setattr(client_module, "REFUSED_WAIT_CAP_S", 0.1)
    failures = iter([ValueError("unforeseen"), KeyError("unforeseen")])
    before = type(broker._client)._process_connect_init

    async def fail_twice(client: client_module.OrderedClient) -> None:
        if failure := next(failures, None):
            raise failure
        await before(client)

    monkeypatch.setattr(type(broker._client), "_process_connect_init", fail_twice)
    with structlog.testing.capture_logs() as lines:
        await broker._client._process_err("server shutdown")
        await rebuilt.wait(1)

    await broker.ping()
    assert len([line for line in lines if line["event"].startswith("Connecting to NATS")]) == 2


async def test_the_servers_new_limit_counts_at_once(broker: Broker) -> None:
    before = broker.max_payload_bytes

    await broker._client._process_info({"max_payload": 4096})

    assert (before > 4096, broker.max_payload_bytes) == (True, 4096)


async def test_a_connection_that_is_closed_for_good_ends_the_host(nats_server: NatsServer) -> None:
    async def idle(ctx: Context, event: Event[bytes]) -> None: ...

    name = fresh("idle")
    stream = fresh("IDLE")
    with structlog.testing.capture_logs() as lines:
        async with running_host(
            nats_server.url,
            {name: {"handler": "on_event", "consumer": {"stream": stream}}},
            {name: idle},
            streams={stream: {"subjects": [f"{stream.lower()}.>"]}},
            grace_s=0,
        ) as host:
            failed = asyncio.create_task(host.wait_for_failure())
            assert host.probes.is_alive()
            assert host._broker is not None

            await host._broker._client.close()  # No server can do that any more.

            with pytest.raises(Unavailable, match="closed for good"):
                await asyncio.wait_for(failed, DEADLINE_S)
            assert not host.probes.is_alive()

    [told] = [line for line in lines if line["log_level"] == "error"]
    assert told["event"] == "The connection to NATS is closed for good, the process ends"
