"""The connection's socket: plain, with TLS, and while the event loop is blocked."""

import asyncio
import gc
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlparse

import httpx
import pytest

from runtime.binding.in_progress import Held, InProgressTicker
from runtime.broker import connection
from runtime.broker.connection import Broker
from runtime.broker.puller import Puller, Slots
from runtime.broker.settler import Settler
from runtime.broker.transport import AHEAD_BYTES, CHUNK_BYTES, KEEP_ALIVE_BYTES, ThreadSafeTransport
from runtime.embedded.credentials import HOST_USER
from runtime.errors import Unavailable
from runtime.message import Message
from tests.support.certificates import contexts, self_signed
from tests.support.host import Journal, eventually, fresh
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer, nats_url

BLOCK_S = 6.0
POLL_S = 0.1
ACK_WAIT_S = 1.0
IMPATIENT = """
ping_interval: "2s"
ping_max: 1
write_deadline: "2s"
"""
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server(NatsServer):
    """A nats-server, with TLS if it has a certificate."""

    def __init__(self, directory: Path, pem: Path | None) -> None:
        self.pem = pem
        super().__init__(directory)

    @property
    def url(self) -> str:
        scheme = "tls" if self.pem else "nats"
        return f"{scheme}://{HOST_USER}:{self.password}@localhost:{self.ports.nats}"

    def configuration(self) -> str:
        tls = f'tls {{ cert_file: "{self.pem}", key_file: "{self.pem}" }}' if self.pem else ""
        return super().configuration() + tls


class ImpatientServer(Server):
    """A nats-server that closes a connection after four silent seconds."""

    def configuration(self) -> str:
        return super().configuration() + IMPATIENT


@pytest.fixture(params=["plain", "tls"])
def certificate(
    request: pytest.FixtureRequest, server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Path | None:
    if request.param == "plain":
        return None
    pem = self_signed("localhost", server_directory)
    pem.chmod(0o644)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    return pem


@pytest.fixture
def server(certificate: Path | None, server_directory: Path) -> Iterator[Server]:
    started = Server(server_directory / "nats", certificate)
    yield started
    started.stop()


@pytest.fixture
def impatient(certificate: Path | None, server_directory: Path) -> Iterator[ImpatientServer]:
    started = ImpatientServer(server_directory / "nats", certificate)
    yield started
    started.stop()


@pytest.fixture
async def patient(impatient: ImpatientServer) -> AsyncIterator[Broker]:
    broker = await Broker.connect(impatient.url, name="test")
    yield broker
    await broker.close()


@contextmanager
def keeping_alive(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` repeatedly on a thread."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(POLL_S):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@asynccontextmanager
async def serving_with(serve: Serve) -> AsyncIterator[ThreadSafeTransport]:
    """A transport that is connected to a server with this behaviour."""
    tasks: list[asyncio.Task[None]] = []

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(run(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        transport = ThreadSafeTransport()
        await transport.connect(urlparse(f"nats://127.0.0.1:{port}"), CHUNK_BYTES, 2)
        try:
            yield transport
        finally:
            transport.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def dialled(server: socket.socket) -> ThreadSafeTransport:
    transport = ThreadSafeTransport()
    uri = urlparse(f"nats://127.0.0.1:{server.getsockname()[1]}")
    await transport.connect(uri, CHUNK_BYTES, 2)
    return transport


def block() -> None:
    time.sleep(BLOCK_S)


async def ended(server: NatsServer) -> list[str]:
    async with httpx.AsyncClient(trust_env=False) as client:
        found = (await client.get(f"{server.monitor_url}/connz?state=closed")).json()
    return [each["reason"] for each in found["connections"]]


def reset(connection: socket.socket) -> None:
    """Reset the connection as a dying server does, with bytes still unread or unsent."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


async def test_bytes_of_every_size_go_out_and_come_back(server: Server) -> None:
    broker = await Broker.connect(server.url, name="test")
    sizes = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * AHEAD_BYTES, 7_000_000]
    seen = Journal()
    await broker.subscribe("echo", lambda message: seen.add(message.data))
    sent = [bytes([65 + number]) * size for number, size in enumerate(sizes)] * 5
    for data in sent:
        await broker.publish_core("echo", data)

    assert await seen.wait(len(sent)) == sent
    assert broker.reconnects == 0
    await broker.close()


async def test_an_answer_that_nobody_waits_for_any_more_does_no_harm(
    nats_server: NatsServer,
) -> None:
    async with Proxy(nats_server.port) as proxy:
        broker = await Broker.connect(nats_url(proxy.port), name="test")
        proxy.silence()
        with pytest.raises(Unavailable):
            await broker.flush(timeout_s=0.1)
        given_up = asyncio.ensure_future(broker.flush())
        await asyncio.sleep(0)
        given_up.cancel()
        proxy.heal()
        await broker.flush()
        assert broker.reconnects == 0
        await broker.close()


async def test_a_server_that_takes_nothing_is_given_up_however_much_waits_for_it(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PING_INTERVAL_S", 0.3)
    async with Proxy(nats_server.port) as proxy:
        broker = await Broker.connect(nats_url(proxy.port), name="test")
        rebuilt = asyncio.Event()
        broker.on_reconnect(rebuilt.set)
        transport = broker._client._transport
        assert isinstance(transport, ThreadSafeTransport)
        proxy.silence()
        for _ in range(24):
            await broker.publish_core("a", bytes(1_000_000))

        async def is_full() -> bool:
            return bool(transport._outgoing)

        await eventually(is_full, "a full socket")
        sending = [asyncio.ensure_future(broker.send_all([("a", b"")])) for _ in range(3000)]

        async def is_tried_again() -> bool:
            return proxy.connections > 1

        await eventually(is_tried_again, "another connection")
        proxy.heal()
        await asyncio.wait_for(rebuilt.wait(), 20)
        await asyncio.gather(*sending)
        await broker.flush()
        await broker.close()


async def test_a_server_that_takes_nothing_does_not_keep_the_connection_from_closing(
    nats_server: NatsServer,
) -> None:
    async with Proxy(nats_server.port) as proxy:
        broker = await Broker.connect(nats_url(proxy.port), name="test")
        transport = broker._client._transport
        assert isinstance(transport, ThreadSafeTransport)
        proxy.silence()
        for _ in range(24):
            await broker.publish_core("a", bytes(1_000_000))

        async def is_full() -> bool:
            return bool(transport._outgoing)

        await eventually(is_full, "a full socket")
        await broker.publish_core("a", b"behind what the server does not take")
        async with asyncio.timeout(60):
            await broker.close()


async def test_a_blocked_loop_keeps_its_connection_and_all_that_is_sent_to_it(
    impatient: ImpatientServer, patient: Broker
) -> None:
    seen = Journal()
    await patient.subscribe("flood", lambda message: seen.add(message.data))
    await patient.flush()
    payloads = [b"%d" % number * 50_000 for number in range(300)]

    def flood() -> None:
        async def publish() -> None:
            other = await Broker.connect(impatient.url, name="other")
            for data in payloads:
                await other.publish_core("flood", data)
            # `close` drops what the server, which slows the flood, has not read in its time.
            await other.flush(timeout_s=60)
            await other.close()

        asyncio.run(publish())

    flooding = threading.Thread(target=flood)
    with keeping_alive(lambda: patient.keep_alive([])):
        flooding.start()
        block()
        flooding.join()

    assert await seen.wait(len(payloads)) == payloads
    assert patient.reconnects == 0
    assert set(await ended(impatient)) <= {"Client Closed"}


async def test_without_a_keepalive_the_server_ends_the_connection_and_it_is_rebuilt(
    impatient: ImpatientServer, patient: Broker
) -> None:
    rebuilt = asyncio.Event()
    patient.on_reconnect(rebuilt.set)
    block()
    await asyncio.wait_for(rebuilt.wait(), 20)

    assert "Stale Connection" in await ended(impatient)
    await patient.flush()


@pytest.mark.parametrize("certificate", ["plain"], indirect=True)
@pytest.mark.parametrize(
    ("is_at_work", "deliveries"), [(True, [1]), (False, [1, 2])], ids=["in time", "too long"]
)
async def test_what_is_here_stays_here_as_long_as_the_function_at_work_has_time(
    patient: Broker, *, is_at_work: bool, deliveries: list[int]
) -> None:
    stream, attempts = fresh("BLOCK"), []
    held: set[Message] = set()
    arrived = asyncio.Event()
    settler = Settler(patient)
    ticker = InProgressTicker(settler)
    ticker.add(Held(held, ACK_WAIT_S))

    def deliver(message: Message) -> None:
        held.add(message)
        attempts.append(message.attempt)
        arrived.set()

    puller = await pull(patient, stream, deliver)
    await patient.publish(f"{stream}.a", b"")
    await arrived.wait()
    with keeping_alive(lambda: ticker.keep_alive(patient, is_at_work=is_at_work)):
        block()
    await patient.flush()
    await puller.stop(5)
    await ticker.stop()
    await settler.stop(1)

    assert attempts[:2] == deliveries


@pytest.mark.parametrize("certificate", ["plain"], indirect=True)
async def test_a_keepalive_acknowledges_nothing(server: Server) -> None:
    async with Proxy(server.port) as proxy:
        broker = await Broker.connect(nats_url(proxy.port), name="test")
        stream, held, arrived = fresh("BLOCK"), set[Message](), Journal()
        settler = Settler(broker)
        ticker = InProgressTicker(settler)
        ticker.add(Held(held, ACK_WAIT_S))
        puller = await pull(broker, stream, arrived.add)
        for number in range(2):
            await broker.publish(f"{stream}.{number}", b"")
        done, kept = await arrived.wait(2)
        settler.ack(done)
        held.add(kept)
        await broker.flush()
        proxy.silence()
        with keeping_alive(lambda: ticker.keep_alive(broker, is_at_work=True)):
            time.sleep(2 * ACK_WAIT_S)  # noqa: ASYNC251 - the block

        async def is_told() -> bool:
            return b"+WPI" in proxy.withheld

        await eventually(is_told, "a sign of life for what is here")
        assert kept.reply.encode() in proxy.withheld
        assert done.reply.encode() not in proxy.withheld
        assert b"+ACK" not in proxy.withheld
        proxy.heal()
        await puller.stop(5)
        await ticker.stop()
        await settler.stop(1)
        await broker.close()


async def pull(broker: Broker, stream: str, deliver: Callable[[Message], None]) -> Puller:
    config = {"name": stream, "subjects": [f"{stream}.>"]}
    await broker.api(f"STREAM.CREATE.{stream}", config)

    async def create() -> None:
        wait_ns = int(ACK_WAIT_S * 1e9)
        config = {"durable_name": "work", "ack_policy": "explicit", "ack_wait": wait_ns}
        await broker.api(
            f"CONSUMER.DURABLE.CREATE.{stream}.work", {"stream_name": stream, "config": config}
        )

    await create()
    puller = Puller(
        broker,
        stream,
        "work",
        slots=Slots(lambda: 10, lambda: 0, lambda: 1_000_000, 1_000_000),
        deliver=deliver,
        recreate=create,
    )
    await puller.start()
    return puller


async def test_a_server_that_takes_nothing_holds_the_writer_up_and_nobody_else() -> None:
    reading = asyncio.Event()
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        total = 0
        while piece := await reader.read(CHUNK_BYTES):
            total += len(piece)
        received.set_result(total)

    async with serving_with(serve) as transport:
        size = 20_000_000
        transport.writelines([b"x" * size])
        draining = asyncio.ensure_future(transport.drain())
        await asyncio.sleep(0)
        transport.keep_alive(b"y")
        assert not draining.done()
        reading.set()
        await draining
        transport.close()
        assert await received == size + len(b"yPONG\r\n")


class Endless(socket.socket):
    """A socket with an endless input."""

    def recv(self, size: int, _flags: int = 0) -> bytes:
        return bytes(size)


async def test_a_keepalive_ends_as_soon_as_the_loop_wants_its_turn() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport = await dialled(server)
        near = transport._socket
        assert near is not None
        with Endless(fileno=near.detach()) as endless:
            transport._socket = endless
            standing = threading.Thread(target=transport.keep_alive)
            standing.start()
            while not transport._incoming_bytes:
                time.sleep(0)  # noqa: ASYNC251 - a blocked loop is what a stand-in is for
            transport.write(b"")
            standing.join()
            read_bytes = transport._incoming_bytes
            transport.close()

    assert 0 < read_bytes < KEEP_ALIVE_BYTES


async def test_what_is_not_asked_for_stays_with_the_server() -> None:
    size = 50_000_000
    taken = 0
    full = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        for _ in range(size // CHUNK_BYTES):
            writer.write(b"x" * CHUNK_BYTES)
            try:
                async with asyncio.timeout(0.5):
                    await writer.drain()
            except TimeoutError:
                full.set()
                await writer.drain()
            taken += CHUNK_BYTES

    async with serving_with(serve) as transport:
        await full.wait()
        assert taken < size
        total = 0
        while piece := await transport.read(1):
            total += len(piece)
        assert total == size // CHUNK_BYTES * CHUNK_BYTES
        assert transport.at_eof()


async def test_a_connection_that_is_reset_says_so_to_the_reader_and_the_writer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport = await dialled(server)
        reset(server.accept()[0])
        with pytest.raises(ConnectionResetError):
            await transport.read(1)
        transport.write(b"x")
        with pytest.raises(ConnectionResetError):
            await transport.drain()
        transport.close()


async def test_an_end_wakes_a_writer_that_waits_for_room() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await asyncio.Event().wait()

    async with serving_with(serve) as transport:
        transport.write(b"x" * 50_000_000)
        with pytest.raises(ConnectionResetError):
            await transport.drain()
        assert await transport.read(1) == b""


async def test_a_reader_learns_that_a_write_has_failed() -> None:
    async def serve(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serving_with(serve) as transport:
        reading = asyncio.ensure_future(transport.read(1))
        await asyncio.sleep(0)
        assert transport._socket is not None
        transport._socket.shutdown(socket.SHUT_WR)
        transport.write(b"x")
        with pytest.raises(BrokenPipeError):
            await reading


async def test_a_line_is_given_without_what_came_behind_it() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}\r\nPI")
        await writer.drain()
        writer.write(b"NG\r\n")

    async with serving_with(serve) as transport:
        assert await transport.readline() == b"INFO {}\r\n"
        assert await transport.readline() == b"PING\r\n"
        assert await transport.readline() == b""


async def test_bytes_before_the_tls_handshake_are_not_trusted(tmp_path: Path) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}\r\nMSG evil 1 0\r\n\r\n")
        await writer.drain()

    _, trusting = contexts(self_signed("localhost", tmp_path))
    async with serving_with(serve) as transport:
        assert await transport.readline() == b"INFO {}\r\n"
        with pytest.raises(ConnectionAbortedError):
            await transport.connect_tls("localhost", trusting, CHUNK_BYTES, 2)


@pytest.mark.parametrize("is_noticed", [True, False])
async def test_a_connection_that_is_reset_before_tls_has_begun_is_let_go_of(
    tmp_path: Path, *, is_noticed: bool
) -> None:
    _, trusting = contexts(self_signed("localhost", tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport = await dialled(server)
        accepted, _ = server.accept()
        accepted.sendall(b"INFO {}\r\n")
        assert await transport.readline() == b"INFO {}\r\n"
        reset(accepted)
        if is_noticed:
            with pytest.raises(ConnectionResetError):
                await transport.read(1)
        with pytest.raises(OSError, match=r"reset|connected"):
            await transport.connect_tls("localhost", trusting, CHUNK_BYTES, 2)
    transport.close()
    assert transport.at_eof()
    del transport
    gc.collect()  # Python warns of a socket that is left open.


@pytest.mark.parametrize("certificate", ["tls"], indirect=True)
async def test_servers_that_reset_connections_before_tls_are_connected_to_in_the_end(
    server: Server,
) -> None:
    class Unsteady(Proxy):
        """Sends INFO on the first connections, and closes them."""

        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.connections > 3:
                await super()._serve(reader, writer)
                return
            far = await self._connect()
            writer.write(await far[0].readline())
            await reader.readexactly(1)
            far[1].close()
            writer.transport.abort()

    async with Unsteady(server.port) as proxy:
        broker = await Broker.connect(
            f"tls://{HOST_USER}:{server.password}@localhost:{proxy.port}", name="test"
        )
        await broker.flush()
        await broker.close()
        assert proxy.connections == 4


@pytest.mark.parametrize("certificate", ["tls"], indirect=True)
async def test_a_certificate_that_nobody_trusts_ends_the_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(self_signed("localhost", tmp_path)))
    with pytest.raises(Unavailable, match="SSLCertVerificationError"):
        await Broker.connect(server.url, name="test", timeout_s=2)
