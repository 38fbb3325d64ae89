"""`runtime serve`: start, drain, problems and exit codes."""

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from runtime.broker.connection import Broker
from runtime.message import Message
from tests.support.host import consumer, eventually, fresh, wait_until_settled
from tests.support.servers import NatsServer, PostgresServer
from tests.support.serving import Served, serving

SECRET = "a-secret-password"
MODULE = """
import asyncio
import os
import time
from runtime import Context, Event

async def work(event: Event[bytes], ctx: Context) -> None:
    await ctx.publish_core("seen.STREAM", b"%d %s" % (os.getpid(), event.raw))
    if event.raw == b"wait":
        await ctx.request("gate.STREAM", b"", timeout_s=60)
"""
HANG = """
def work(event: Event[bytes], ctx: Context) -> None:
    print("HUNG", flush=True)
    time.sleep(1000)
"""
CRASH = """
async def start(ctx: Context) -> None:
    os._exit(3)
"""
CLOSE = """
async def work(event: Event[bytes], ctx: Context) -> None:
    await ctx._scope.broker._client.close()
"""
START = """
async def start(ctx: Context) -> None:
    print("STARTING", flush=True)
    await asyncio.Event().wait()
"""
MANIFEST = """
streams:
  STREAM: {subjects: ["STREAM.>"]}
functions:
  work_STREAM:
    handler: work_STREAM:work
    consumer: {stream: STREAM, ack_wait: 2s}
    retry: {delay: 100ms}
"""


class Project:
    """A folder with a manifest and a module, and a subscription to the function's reports."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.folder = folder
        self.stream = fresh("E2E")
        self.function = f"work_{self.stream}"
        self.broker = broker
        self.seen: asyncio.Queue[Message] = asyncio.Queue()
        self.gates: asyncio.Queue[Message] = asyncio.Queue()
        self.write()

    def write(self, more: str = "", module: str = "") -> None:
        manifest, code = MANIFEST + more, MODULE + module
        (self.folder / "app.yaml").write_text(manifest.replace("STREAM", self.stream))
        (self.folder / f"{self.function}.py").write_text(code.replace("STREAM", self.stream))

    async def listen(self) -> None:
        await self.broker.subscribe(f"seen.{self.stream}", self.seen.put_nowait)
        await self.broker.subscribe(f"gate.{self.stream}", self.gates.put_nowait)
        await self.broker.flush()

    async def give(self, data: bytes) -> None:
        await self.broker.publish(f"{self.stream}.a", data)

    async def take(self) -> tuple[int, bytes]:
        """Process and payload of the function's next call."""
        async with asyncio.timeout(60):
            message = await self.seen.get()
        number, _, data = message.data.partition(b" ")
        return int(number), data

    async def open_gate(self) -> None:
        async with asyncio.timeout(60):
            await self.broker.respond(await self.gates.get(), b"")


@pytest.fixture
async def project(tmp_path: Path, broker: Broker) -> Project:
    project = Project(tmp_path, broker)
    await project.listen()
    return project


@pytest.fixture
def addresses(nats_server: NatsServer, postgres_dsn: str) -> dict[str, str]:
    return {"NATS_URL": nats_server.url, "DATABASE_URL": postgres_dsn}


async def test_it_says_when_it_is_ready_and_drains_at_sigterm(
    project: Project, addresses: dict[str, str]
) -> None:
    async with serving(project.folder, **addresses) as served:
        ready = await served.wait_for_line("Ready")
        await project.give(b"wait")
        await project.take()
        served.send(signal.SIGTERM)
        await served.wait_for_line("Draining")
        await project.open_gate()
        code = await served.wait_until_ended()
        found = await consumer(project.broker, project.stream, project.function)

    assert ready["functions"] == 1
    assert code == 0
    assert (found["ack_floor"]["stream_seq"], found["num_ack_pending"]) == (1, 0)


async def test_it_names_functions_that_others_need_and_that_no_manifest_has(
    project: Project, addresses: dict[str, str]
) -> None:
    project.write(more="    needs: [pack_orders]\n")
    async with serving(project.folder, **addresses) as served:
        told = await served.wait_for_line(
            "A function that others need is in no manifest here; another host must run it"
        )

    assert (told["level"], told["function"]) == ("warning", "pack_orders")
    assert told["needed_by"] == [project.function]


async def test_a_second_signal_ends_it_at_once_and_the_message_comes_again(
    project: Project, addresses: dict[str, str]
) -> None:
    async with serving(project.folder, **addresses) as served:
        await served.wait_for_line("Ready")
        await project.give(b"wait")
        first, _ = await project.take()
        served.send(signal.SIGINT)
        await served.wait_for_line("Draining")
        served.send(signal.SIGINT)
        began_s = time.monotonic()
        await served.wait_until_ended()
        took_s = time.monotonic() - began_s
    async with serving(project.folder, **addresses) as served:
        second, data = await project.take()
        await project.gates.get()  # the first host's request, without an answer
        await project.open_gate()
        await wait_until_settled(project.broker, project.stream, project.function)

    assert took_s < 20
    assert second != first
    assert data == b"wait"


async def test_a_connection_that_is_closed_for_good_ends_the_process_with_1(
    project: Project, addresses: dict[str, str]
) -> None:
    # No message of a server closes the connection for good; only an unforeseen error does.
    project.write(module=CLOSE)
    async with serving(project.folder, **addresses) as served:
        await served.wait_for_line("Ready")
        await project.give(b"close")
        told = await served.wait_for_line(
            "The connection to NATS is closed for good, the process ends"
        )
        code = await served.wait_until_ended()

    assert (told["level"], code) == ("error", 1)
    assert "NATS is unavailable: the connection is closed for good" in served.text
    assert "Traceback" not in served.text


async def test_a_thread_that_hangs_does_not_keep_it_from_ending(
    project: Project, addresses: dict[str, str]
) -> None:
    project.write(module=HANG)
    async with serving(project.folder, RUNTIME_GRACE_S="0.5", **addresses) as served:
        await served.wait_for_line("Ready")
        await project.give(b"x")

        async def hung() -> bool:
            return "HUNG" in served.text

        await eventually(hung, "the call")
        served.send(signal.SIGTERM)
        assert await served.wait_until_ended(25) == 0


async def test_a_signal_before_it_is_ready_ends_it(
    project: Project, addresses: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with serving(
            project.folder, **{**addresses, "NATS_URL": f"nats://127.0.0.1:{port}"}
        ) as served:
            connection, _ = await asyncio.to_thread(silent.accept)
            served.send(signal.SIGTERM)
            began_s = time.monotonic()
            code = await served.wait_until_ended()
            connection.close()

    assert code == 0
    assert time.monotonic() - began_s < 8


async def _ended(folder: Path, *arguments: str, **environment: str) -> tuple[int, Served, float]:
    began_s = time.monotonic()
    async with serving(folder, *arguments, **environment) as served:
        code = await served.wait_until_ended()
    return code, served, time.monotonic() - began_s


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


GIVEN_UP_S = 60.0
"""The first connection has 10 s; a busy machine needs some more to start and to end a process."""


async def test_an_unreachable_nats_is_one_clear_line_and_exit_code_1(
    project: Project, addresses: dict[str, str]
) -> None:
    port = _closed_port()
    url = f"nats://someone:{SECRET}@127.0.0.1:{port}"
    code, served, took_s = await _ended(project.folder, **{**addresses, "NATS_URL": url})

    assert code == 1
    [line, remedy] = [line for line in served.lines if not line.startswith("{")]
    assert line.startswith(f"NATS at 127.0.0.1:{port} is unavailable: no connection within 10 s")
    assert remedy == "Check that this server runs, and the address in NATS_URL"
    assert took_s < GIVEN_UP_S
    assert SECRET not in served.text


async def test_an_unreachable_postgres_is_one_clear_line_and_exit_code_1(
    project: Project, addresses: dict[str, str]
) -> None:
    project.write("migrations: {core: functions.domain.migrations}\n")
    dsn = f"postgresql://someone:{SECRET}@127.0.0.1:{_closed_port()}/db"
    code, served, took_s = await _ended(project.folder, **{**addresses, "DATABASE_URL": dsn})

    assert code == 1
    [line, remedy] = [line for line in served.lines if not line.startswith("{")]
    assert line.startswith("PostgreSQL is unavailable")
    assert remedy == "Check that this server runs, and the address in DATABASE_URL"
    assert took_s < GIVEN_UP_S
    assert SECRET not in served.text


async def test_a_wrong_password_is_told_without_showing_it(
    project: Project, addresses: dict[str, str], postgres_server: PostgresServer
) -> None:
    project.write("migrations: {core: functions.domain.migrations}\n")
    name = f"postgresql://nobody-here:{SECRET}@"
    dsn = name + addresses["DATABASE_URL"].rpartition("@")[2]
    code, served, _ = await _ended(project.folder, **{**addresses, "DATABASE_URL": dsn})

    assert code == 2
    assert served.lines[0].startswith("DATABASE_URL: PostgreSQL cannot be used with it")
    assert SECRET not in served.text


async def test_an_unknown_runtime_variable_is_a_mistake(project: Project) -> None:
    code, served, _ = await _ended(project.folder, RUNTIME_NATS_PROT="4222")

    assert code == 2
    assert served.lines[0].startswith("RUNTIME_NATS_PROT: no such setting; known are ")


async def test_every_mistake_of_a_manifest_is_told_before_anything_starts(project: Project) -> None:
    project.write("  second: {handler: nowhere:work, service: true, sevice: 1}\n")
    code, served, _ = await _ended(project.folder)

    assert code == 2
    assert "sevice" in served.text
    assert not (project.folder / ".runtime").exists()


@pytest.mark.parametrize(
    "variable",
    [
        "RUNTIME_MQTT_PORT",
        pytest.param("RUNTIME_NATS_PORT", marks=pytest.mark.long),
        pytest.param("RUNTIME_MONITOR_PORT", marks=pytest.mark.long),
    ],
)
async def test_a_taken_port_of_the_embedded_server_is_named(
    project: Project, addresses: dict[str, str], variable: str
) -> None:
    ports = dict.fromkeys(["RUNTIME_NATS_PORT", "RUNTIME_MONITOR_PORT", "RUNTIME_MQTT_PORT"], "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, served, _ = await _ended(
            project.folder, DATABASE_URL=addresses["DATABASE_URL"], **{**ports, variable: port}
        )

    assert code == 2
    assert any(port in line and variable in line for line in served.lines), served.text


async def test_a_taken_admin_port_is_named(project: Project, addresses: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, served, _ = await _ended(project.folder, RUNTIME_ADMIN_PORT=port, **addresses)

    assert code == 2
    assert any(port in line and "RUNTIME_ADMIN_PORT" in line for line in served.lines), served.text


GATEWAY = """  gateway_STREAM:
    handler: functions.http_gateway:serve
    service: true
    settings: {port: "${GATEWAY_PORT}", admin_key: a-key-of-16-signs, bridge_key: a-key-of-16-signs}
"""


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_taken_gateway_port_ends_it_and_is_named(
    project: Project, addresses: dict[str, str], workers: str
) -> None:
    project.write(GATEWAY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, served, _ = await _ended(
            project.folder, "app.yaml", "--workers", workers, GATEWAY_PORT=port, **addresses
        )

    names = (await project.broker.api("STREAM.NAMES")).get("streams") or []
    assert code == 2
    assert served.lines[-2].startswith(
        f"port {port}: function gateway_{project.stream} wants it, and process "
    )
    assert served.lines[-2].endswith("has it; end what has it, or set GATEWAY_PORT to another port")
    assert served.lines[-1] == "1 problem"
    assert project.stream not in names


async def test_a_taken_port_of_any_service_is_found_before_a_server_is_started(
    tmp_path: Path,
) -> None:
    (tmp_path / "shop.py").write_text(
        "from pydantic import BaseModel\n"
        "from runtime import Context\n"
        "class Settings(BaseModel):\n"
        "    host: str = '127.0.0.1'\n"
        "    port: int\n"
        "async def serve(ctx: Context) -> None: ...\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "app.yaml").write_text(
            "functions:\n"
            "  shop:\n"
            "    handler: shop:serve\n"
            "    service: true\n"
            f"    settings: {{port: {port}}}\n"
        )
        code, served, _ = await _ended(tmp_path, "app.yaml")

    assert code == 2
    assert served.lines[0].startswith(f"port {port}: function shop wants it, and process ")
    assert served.lines[0].endswith(
        "end what has it, or set the port in app.yaml:5 to another port"
    )
    assert not (tmp_path / ".runtime").exists()


async def test_two_that_want_one_port_are_named_before_a_server_is_started(tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text("streams: {S: {subjects: [s]}}\n")
    code, served, _ = await _ended(tmp_path, "app.yaml", RUNTIME_ADMIN_PORT="4222")

    assert code == 2
    assert served.lines[0] == (
        "port 4222: both the admin server and the embedded nats-server want it; set"
        " RUNTIME_ADMIN_PORT or RUNTIME_NATS_PORT to another"
    )
    assert not (tmp_path / ".runtime").exists()


def _runs(process: psutil.Process) -> bool:
    # On a machine without an init process that reaps it, an orphan stays a zombie.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def _readyz(admin_url: str) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            return (await client.get(f"{admin_url}/readyz")).status_code
        except httpx.TransportError:
            return 0


async def test_a_killed_worker_is_started_again(
    project: Project, addresses: dict[str, str]
) -> None:
    async with serving(project.folder, "app.yaml", "--workers", "2", **addresses) as served:
        started = await served.wait_for_line("Started")
        await served.wait_for_line("Ready", count=3)
        await project.give(b"first")
        victim, _ = await project.take()
        os.kill(victim, signal.SIGKILL)
        await served.wait_for_line("A worker ended, it is started again")
        await served.wait_for_line("Ready", count=4)

        async def ready() -> bool:
            return await _readyz(started["admin"]) == 200

        await eventually(ready, "a ready host")
        for _ in range(20):
            await project.give(b"more")
        seen = {await project.take() for _ in range(20)}
        served.send(signal.SIGTERM)
        code = await served.wait_until_ended(25)

    assert code == 0
    assert victim not in {pid for pid, _ in seen}


async def test_workers_share_the_rate_of_their_host(
    project: Project, addresses: dict[str, str]
) -> None:
    project.write("    rate: {limit: 1/h, burst: 4}\n")
    async with serving(project.folder, "app.yaml", "--workers", "2", **addresses) as served:
        await served.wait_for_line("Ready", count=3)
        for _ in range(20):
            await project.give(b"x")
        seen = [await project.take() for _ in range(4)]
        await wait_until_acknowledged(project, 4)
        found = await consumer(project.broker, project.stream, project.function)

    assert sorted(Counter(pid for pid, _ in seen).values()) == [2, 2]
    assert (found["num_pending"], found["num_waiting"]) == (16, 0)
    assert project.seen.empty()


async def wait_until_acknowledged(project: Project, count: int) -> None:
    async def look() -> bool:
        found = await consumer(project.broker, project.stream, project.function)
        return bool(found["ack_floor"]["stream_seq"] == count)

    await eventually(look, f"{count} acknowledgements")


async def test_a_worker_that_ends_each_time_is_started_again_after_ever_longer_pauses(
    project: Project, addresses: dict[str, str]
) -> None:
    project.write(module=CRASH)
    sentence = "A worker ended, it is started again"
    async with serving(project.folder, "app.yaml", "--workers", "2", **addresses) as served:
        ends = [
            await served.wait_for_line(sentence, count=count, worker="2") for count in (1, 2, 3)
        ]
        served.send(signal.SIGTERM)
        code = await served.wait_until_ended(25)

    assert [end["pause_s"] for end in ends] == [0.5, 1.0, 2.0]
    assert {end["ended_by"] for end in ends} == {"exit code 3"}
    assert code == 0


async def test_workers_drain_by_themselves_when_their_supervisor_is_killed(
    project: Project, addresses: dict[str, str]
) -> None:
    async with serving(project.folder, "app.yaml", "--workers", "2", **addresses) as served:
        await served.wait_for_line("Ready", count=3)
        workers = psutil.Process(served.process.pid).children()
        await project.give(b"wait")
        await project.take()
        served.send(signal.SIGKILL)
        await served.wait_for_line("Draining", count=2)
        await project.open_gate()
        await served.wait_until_ended()
        await wait_until_settled(project.broker, project.stream, project.function)

    async def all_ended() -> bool:
        return not any(map(_runs, workers))

    assert len(workers) == 2
    # The workers' standard error closes a moment before they end.
    await eventually(all_ended, "the workers' end")


async def test_a_signal_ends_a_supervisor_whose_workers_are_not_ready(
    project: Project, addresses: dict[str, str]
) -> None:
    project.write(module=START)
    async with serving(project.folder, "app.yaml", "--workers", "2", **addresses) as served:

        async def starting() -> bool:
            return served.text.count("STARTING") == 2

        await eventually(starting, "two starting workers")
        served.send(signal.SIGTERM)
        assert await served.wait_until_ended(25) == 0


async def test_the_host_brings_its_servers_and_leaves_none_behind(project: Project) -> None:
    ports = dict.fromkeys(["RUNTIME_NATS_PORT", "RUNTIME_MONITOR_PORT", "RUNTIME_MQTT_PORT"], "0")
    async with serving(project.folder, **ports) as served:
        await served.wait_for_line("Ready")
        servers = psutil.Process(served.process.pid).children(recursive=True)
        served.send(signal.SIGKILL)
        await served.wait_until_ended()
    async with serving(project.folder, **ports) as served:
        await served.wait_for_line("Ready")
        alive = [server for server in servers if _runs(server)]
        secrets = [
            path.read_text().strip()
            for path in (project.folder / ".runtime").iterdir()
            if path.suffix in {".key", ".password"}
        ]
        served.send(signal.SIGTERM)
        code = await served.wait_until_ended(25)

    assert servers
    assert not alive
    assert code == 0
    assert secrets
    assert not any(secret in served.text for secret in secrets)


async def test_a_module_that_is_named_like_one_of_python_harms_no_worker(
    project: Project, addresses: dict[str, str]
) -> None:
    for name in ("json.py", "queue.py", "click.py"):
        (project.folder / name).write_text("raise RuntimeError(__name__)")

    async with serving(project.folder, "app.yaml", "--workers", "2", **addresses) as served:
        await served.wait_for_line("Ready")
