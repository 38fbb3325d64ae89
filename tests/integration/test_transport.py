"""The connection's socket: plain and with TLS, and while a block holds the event loop up."""

import asyncio
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
from runtime.binding.stand_in import StandIn
from runtime.broker.connection import Broker
from runtime.broker.puller import Puller, Slots
from runtime.broker.settler import Settler
from runtime.broker.transport import AHEAD_BYTES, CHUNK_BYTES, KeptTransport
from runtime.errors import Unavailable
from runtime.message import Message
from tests.certificates import contexts, self_signed
from tests.host import Journal, fresh
from tests.servers import NatsServer

BLOCK_S = 6.0
POLL_S = 0.1
ACK_WAIT_S = 1.0
IMPATIENT = """
ping_interval: "2s"
ping_max: 1
write_deadline: "2s"
"""
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ImpatientServer(NatsServer):
    """Ends a connection that is silent for four seconds; with TLS where it has a certificate."""

    def __init__(self, directory: Path, pem: Path | None) -> None:
        self.pem = pem
        super().__init__(directory)

    @property
    def url(self) -> str:
        return f"{'tls' if self.pem else 'nats'}://localhost:{self.ports.nats}"

    def configuration(self) -> str:
        tls = f'tls {{ cert_file: "{self.pem}", key_file: "{self.pem}" }}' if self.pem else ""
        return super().configuration() + IMPATIENT + tls


@pytest.fixture(params=["plain", "tls"])
def impatient(
    request: pytest.FixtureRequest, server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ImpatientServer]:
    pem = self_signed("localhost", server_directory) if request.param == "tls" else None
    if pem is not None:
        pem.chmod(0o644)
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    server = ImpatientServer(server_directory / "nats", pem)
    yield server
    server.stop()


@pytest.fixture
async def patient(impatient: ImpatientServer) -> AsyncIterator[Broker]:
    broker = await Broker.connect(impatient.url, name="test")
    yield broker
    await broker.close()


@contextmanager
def standing_in(act: Callable[[], None]) -> Iterator[None]:
    """Have a thread act again and again."""
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
async def serving_with(serve: Serve) -> AsyncIterator[KeptTransport]:
    """A transport that is connected to a server which does this."""
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
        transport = KeptTransport()
        await transport.connect(urlparse(f"nats://127.0.0.1:{port}"), CHUNK_BYTES, 2)
        try:
            yield transport
        finally:
            transport.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def block() -> None:
    time.sleep(BLOCK_S)


async def ended(server: NatsServer) -> list[str]:
    async with httpx.AsyncClient(trust_env=False) as client:
        found = (await client.get(f"{server.monitor_url}/connz?state=closed")).json()
    return [each["reason"] for each in found["connections"]]


async def test_bytes_of_every_size_go_out_and_come_back(patient: Broker) -> None:
    sizes = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * AHEAD_BYTES, 7_000_000]
    seen = Journal()
    await patient.subscribe("echo", lambda message: seen.add(message.data))
    sent = [bytes([65 + number]) * size for number, size in enumerate(sizes)] * 5
    for data in sent:
        await patient.publish_core("echo", data)

    assert await seen.wait(len(sent)) == sent


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
            await other.close()

        asyncio.run(publish())

    flooding = threading.Thread(target=flood)
    with standing_in(lambda: patient.stand_in([])):
        flooding.start()
        block()
        flooding.join()

    assert await seen.wait(len(payloads)) == payloads
    assert patient.reconnects == 0
    assert set(await ended(impatient)) <= {"Client Closed"}


async def test_without_a_stand_in_the_server_ends_the_connection_and_it_is_rebuilt(
    impatient: ImpatientServer, patient: Broker
) -> None:
    rebuilt = asyncio.Event()
    patient.on_reconnect(rebuilt.set)
    block()
    await asyncio.wait_for(rebuilt.wait(), 20)

    assert await ended(impatient) == ["Stale Connection"]
    await patient.flush()


@pytest.mark.parametrize("impatient", ["plain"], indirect=True)
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
    stand_in = StandIn(patient, ticker)
    with standing_in(lambda: stand_in.act(is_at_work=is_at_work)):
        block()
    await patient.flush()
    await puller.stop(5)
    await ticker.stop()
    await settler.stop(1)

    assert attempts[:2] == deliveries


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
        slots=Slots(lambda: 10, lambda: 0),
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
        transport.stand_in(b"y")
        assert not draining.done()
        reading.set()
        await draining
        transport.close()
        assert await received == size + len(b"yPONG\r\n")


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
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reset = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)

    async with serving_with(serve) as transport:
        with pytest.raises(ConnectionResetError):
            await transport.read(1)
        transport.write(b"x")
        with pytest.raises(ConnectionResetError):
            await transport.drain()


async def test_an_end_wakes_whoever_waits_for_room_to_write() -> None:
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


async def test_whoever_speaks_before_tls_has_begun_is_not_trusted(tmp_path: Path) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}\r\nMSG evil 1 0\r\n\r\n")
        await writer.drain()

    _, trusting = contexts(self_signed("localhost", tmp_path))
    async with serving_with(serve) as transport:
        assert await transport.readline() == b"INFO {}\r\n"
        with pytest.raises(ConnectionAbortedError):
            await transport.connect_tls("localhost", trusting, CHUNK_BYTES, 2)


@pytest.mark.parametrize("impatient", ["tls"], indirect=True)
async def test_a_certificate_that_nobody_trusts_ends_the_connection(
    impatient: ImpatientServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(self_signed("localhost", tmp_path)))
    with pytest.raises(Unavailable, match="SSLCertVerificationError"):
        await Broker.connect(impatient.url, name="test", timeout_s=2)
