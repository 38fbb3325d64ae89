"""The start screen of `runtime serve`, on terminals of two widths."""

import json
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from runtime.broker.connection import Broker
from runtime.cli.manifests import SHIPPED
from runtime.manifest import read
from runtime.process.placeholders import placeholders
from runtime.settings import HostSettings
from tests.e2e.test_readme import PORTS
from tests.support.documentation import ROOT, RUNTIME, free_port
from tests.support.host import fresh
from tests.support.servers import NatsServer, remove
from tests.support.terminal import OnTerminal, on_terminal, widest

WIDTHS = pytest.mark.parametrize("columns", [80, pytest.param(100, marks=pytest.mark.long)])


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Free ports, and a data directory that PostgreSQL's user can traverse."""
    made = Path(tempfile.mkdtemp(prefix="runtime-test-screen-"))
    made.chmod(0o711)
    ports = {name: str(free_port()) for name in PORTS}
    yield {**ports, "RUNTIME_DATA_DIR": str(made / ".runtime")}
    remove(made)


@pytest.fixture
def app(tmp_path: Path, nats_server: NatsServer) -> tuple[Path, dict[str, str], str]:
    """A folder with a function that waits, its host's environment, and its stream."""
    stream = fresh("WORK")
    work = {"handler": "app:work", "timeout": "1h", "consumer": {"stream": stream}}
    manifest = {
        "streams": {stream: {"subjects": [f"{stream}.>"]}},
        "functions": {stream.lower(): work},
    }
    (tmp_path / "app.yaml").write_text(yaml.safe_dump(manifest))
    (tmp_path / "app.py").write_text(
        "import asyncio\n"
        "from runtime import Context, Event\n"
        "async def start(ctx: Context) -> None:\n"
        "    ctx.log.info('Loading')\n"
        "async def work(event: Event[bytes], ctx: Context) -> None:\n"
        "    ctx.log.info('Working')\n"
        "    await asyncio.sleep(3600)\n"
    )
    servers = {"NATS_URL": nats_server.url, "DATABASE_URL": "unused"}
    return tmp_path, {**servers, "RUNTIME_ADMIN_PORT": "0"}, stream


def words_of(shown: OnTerminal, label: str) -> list[str]:
    [line] = [line for line in shown.lines if line.startswith(f"  {label} ")]
    return line.removeprefix(f"  {label} ").split()


@WIDTHS
def test_the_shipped_manifests_start_with_a_screen_that_fits_and_ends_with_ready(
    columns: int, environment: dict[str, str]
) -> None:
    with on_terminal(
        [RUNTIME, "serve", "manifests/"], columns=columns, folder=ROOT, environment=environment
    ) as shown:
        shown.wait_for(r"^  Ready in ")
        gateway = f"http://127.0.0.1:{environment['GATEWAY_PORT']}"
        wait_for_routes(gateway)
        lines, raw = shown.lines, shown.raw
        labels = {label: words_of(shown, label) for label in ("Gateway", "API docs", "Admin")}
        kinds = {label: words_of(shown, label)[0] for label in ("Consumers", "Endpoints")}
        nats, postgres, keys = (words_of(shown, label) for label in ("NATS", "PostgreSQL", "Keys"))

    assert re.fullmatch(r"  Ready in \d+\.\d s", lines[-1])
    assert widest(raw) <= columns
    # A log line that continues below its sentence, or that the terminal wrapped.
    assert not [line for line in lines if re.match(" {15}[^ ]", line)]
    assert not [line for line in lines if re.match(r"\d\d:", line) and " INFO  http" not in line]
    assert labels == {
        "Gateway": [gateway],
        "API docs": [f"{gateway}/docs"],
        "Admin": [f"http://127.0.0.1:{environment['RUNTIME_ADMIN_PORT']}/readyz", "/metrics"],
    }
    for [link] in (labels["Gateway"], labels["API docs"]):
        assert f";{link}\x1b\\" in raw, "it cannot be clicked"
    shipped = read(sorted(SHIPPED.glob("*.yaml")), placeholders(HostSettings())).functions.values()
    counts = {
        "Consumers": str(sum(one.consumer is not None for one in shipped)),
        "Endpoints": str(sum(one.endpoint is not None for one in shipped)),
    }
    assert kinds == counts
    nats_url = f"nats://127.0.0.1:{environment['RUNTIME_NATS_PORT']}"
    assert nats == [nats_url, "embedded;", "runtime", "nats-context"]
    assert postgres == ["embedded;", "runtime", "psql"]
    assert keys[:2] == ["admin.key,", "mqtt.password"]
    assert "bridge key" not in raw


def wait_for_routes(gateway: str) -> None:
    """Return when the gateway has found its routes, which it must not report below Ready."""
    until_s = time.monotonic() + 30
    while True:
        answer = httpx.get(f"{gateway}/openapi.json", timeout=5, trust_env=False)
        if len(answer.json()["paths"]) > 10:
            return
        assert time.monotonic() < until_s
        time.sleep(0.1)


@WIDTHS
def test_with_workers_the_screen_is_the_supervisors_alone(
    columns: int, app: tuple[Path, dict[str, str], str]
) -> None:
    folder, environment, stream = app
    with on_terminal(
        [RUNTIME, "serve", "app.yaml", "--workers", "2"],
        columns=columns,
        folder=folder,
        environment=environment,
    ) as shown:
        shown.wait_for(r"^  Ready in ")
        lines = shown.lines
        shown.press_ctrl_c()
        shown.wait_for(r"^  Draining: 2 processes finish their messages, for 30 s at most\.$")
        code = shown.wait_until_ended()

    assert lines[-1].startswith("  Ready in ")
    assert "  nats-function-runtime 0.1.0 serves app.yaml in 2 processes" in lines
    assert words_of(shown, "Consumers") == ["1", stream.lower()]
    entries = [line[9:] for line in shown.lines if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert entries == [f"INFO  {stream.lower()}: Loading"] * 2 + ["INFO  Stopped"]
    assert widest(shown.raw) <= columns
    assert code == 0


@WIDTHS
async def test_ctrl_c_says_what_it_waits_for_and_what_a_second_one_does(
    columns: int, app: tuple[Path, dict[str, str], str], broker: Broker
) -> None:
    folder, environment, stream = app
    with on_terminal(
        [RUNTIME, "serve", "app.yaml"], columns=columns, folder=folder, environment=environment
    ) as shown:
        shown.wait_for(r"^  Ready in ")
        for _ in range(2):
            await broker.publish(f"{stream}.a", b"x")
        shown.wait_for(r"Working .*\n.*Working ")
        shown.press_ctrl_c()
        shown.wait_for(r"^  Ctrl-C again stops at once")
        said = " ".join(" ".join(shown.lines).partition("Draining")[2].split())
        shown.press_ctrl_c()
        code = shown.wait_until_ended()

    assert said == (
        ": 2 held messages are finished first, for 30 s at most"
        f" ({stream.lower()} 2). Ctrl-C again stops at once; unfinished messages are then"
        " delivered again."
    )
    assert shown.lines[-1].endswith("INFO  Stopped")
    assert widest(shown.raw) <= columns
    assert code == 0


def test_a_drain_with_nothing_to_wait_for_says_so(app: tuple[Path, dict[str, str], str]) -> None:
    folder, environment, _ = app
    with on_terminal(
        [RUNTIME, "serve", "app.yaml"], columns=80, folder=folder, environment=environment
    ) as shown:
        shown.wait_for(r"^  Ready in ")
        shown.press_ctrl_c()
        shown.wait_for(r"^  Draining: no message is held;")
        assert shown.wait_until_ended() == 0


def test_json_on_a_terminal_is_what_it_is_elsewhere(app: tuple[Path, dict[str, str], str]) -> None:
    folder, environment, _ = app
    with on_terminal(
        [RUNTIME, "serve", "app.yaml"],
        columns=80,
        folder=folder,
        environment={**environment, "RUNTIME_LOG_FORMAT": "json"},
    ) as shown:
        shown.wait_for(r'"event":"Ready"')
        entries = [json.loads(line) for line in shown.lines]

    assert [entry["event"] for entry in entries][-1] == "Ready"
    assert entries[-1].keys() == {"event", "level", "logger", "timestamp", "admin", "functions"} | {
        "seconds"
    }


@WIDTHS
def test_a_start_that_fails_leaves_the_problem_alone(
    columns: int, app: tuple[Path, dict[str, str], str]
) -> None:
    folder, environment, _ = app
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with on_terminal(
            [RUNTIME, "serve", "app.yaml"],
            columns=columns,
            folder=folder,
            environment={**environment, "RUNTIME_ADMIN_PORT": port},
        ) as shown:
            code = shown.wait_until_ended()

    assert code == 2
    assert shown.lines[0].startswith(f"port {port}: the admin server wants it, and process ")
    assert shown.lines[-1] == "1 problem"
