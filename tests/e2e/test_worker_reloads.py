"""Reloads of a host with worker processes, and reloads that SIGHUP asks for."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from runtime.broker.connection import Broker
from runtime.message import Message
from tests.support.host import eventually, fresh
from tests.support.servers import NatsServer
from tests.support.serving import Served, serving

MODULE = """
import os
from runtime import Context, Event

async def work(event: Event[bytes], ctx: Context) -> None:
    await ctx.publish_core("seen.STREAM", b"%s VERSION %d" % (ctx.function.encode(), os.getpid()))
"""
READS_AT_START = """
from pathlib import Path

async def start(ctx: Context) -> str:
    return Path(__file__).with_name("greeting.txt").read_text()

async def work(event: Event[bytes], ctx: Context) -> None:
    said = f"{ctx.function} {ctx.state} {os.getpid()}"
    await ctx.publish_core("seen.STREAM", said.encode())
"""
MANIFEST = """
streams:
  STREAM: {subjects: ["STREAM.>"]}
functions:
  shared:
    handler: work_STREAM:work
    consumer: {stream: STREAM, durable: shared_STREAM, filter_subjects: [STREAM.shared]}
  alone:
    handler: work_STREAM:work
    isolate: ISOLATED
    consumer: {stream: STREAM, durable: alone_STREAM, filter_subjects: [STREAM.alone]}
"""


class Project:
    """A folder with a manifest and a module, and what its functions have seen."""

    def __init__(self, folder: Path, broker: Broker, address: str) -> None:
        self.folder = folder
        self.stream = fresh("WORKERS")
        self.environment = {"NATS_URL": address, "RUNTIME_GRACE_S": "5"}
        self._broker = broker
        self._seen: asyncio.Queue[Message] = asyncio.Queue()
        self.save("v1")
        self.declare()

    def save(self, version: str, more: str = "") -> None:
        text = MODULE.replace("STREAM", self.stream).replace("VERSION", version) + more
        (self.folder / f"work_{self.stream}.py").write_text(text)

    def declare(self, *, isolated: str = "true", change: Callable[[str], str] = str) -> None:
        text = MANIFEST.replace("STREAM", self.stream).replace("ISOLATED", isolated)
        (self.folder / "app.yaml").write_text(change(text))

    async def listen(self) -> None:
        await self._broker.subscribe(f"seen.{self.stream}", self._seen.put_nowait)

    async def ask(self, function: str) -> tuple[str, int]:
        """Publish a message for a function; return the version and the process that took it."""
        subject = f"{self.stream}.{function}"
        await self._broker.publish(subject, b"", msg_id=fresh("m"))
        async with asyncio.timeout(20):
            name, version, process = (await self._seen.get()).data.decode().split()
        assert name == function
        return version, int(process)

    async def versions(self, function: str, processes: int) -> set[str]:
        """The versions that answer, asked until so many processes have."""
        found: dict[int, str] = {}
        async with asyncio.timeout(20):
            while len(found) < processes:
                version, process = await self.ask(function)
                found[process] = version
        return set(found.values())


@pytest.fixture
async def project(
    tmp_path: Path, nats_server: NatsServer, broker: Broker
) -> AsyncIterator[Project]:
    made = Project(tmp_path, broker, nats_server.url)
    await made.listen()
    yield made
    await broker.api(f"STREAM.DELETE.{made.stream}")


async def _readiness(served: Served) -> dict[str, Any]:
    started = await served.wait_for_line("Started")
    async with httpx.AsyncClient() as client:
        found: dict[str, Any] = (await client.get(f"{started['admin']}/readyz")).json()
    return found


async def _is_mended(served: Served) -> bool:
    checks = (await _readiness(served))["checks"]
    return bool(checks["reload"]["ok"])


async def _has_no_own_process(served: Served) -> bool:
    found = await _readiness(served)
    return bool(found["ready"]) and "worker-isolated-alone" not in found["checks"]


async def test_every_process_follows_and_one_line_says_so(project: Project) -> None:
    arguments = ("app.yaml", "--workers", "2", "--reload")
    async with serving(project.folder, *arguments, **project.environment) as served:
        await served.wait_for_line("Ready", count=4)
        assert await project.versions("shared", 2) == {"v1"}
        project.save("v2")
        await served.wait_for_line("Swapped", function="shared")
        await served.wait_for_line("Swapped", function="alone")
        assert await project.versions("shared", 2) == {"v2"}
        assert await project.versions("alone", 1) == {"v2"}

        project.save("v3", "broken(\n")
        sentence = "Not reloaded, the last good version runs on"
        failed = await served.wait_for_line(sentence)
        broken = await _readiness(served)
        assert await project.versions("shared", 2) == {"v2"}
        project.save("v4")
        await served.wait_for_line("Swapped", function="alone", count=2)
        await served.wait_for_line("Swapped", function="shared", count=2)
        await eventually(lambda: _is_mended(served), "a reload without an error in /readyz")
        assert await project.versions("shared", 2) == {"v4"}
        served.send(signal.SIGTERM)
        assert await served.wait_until_ended(20) == 0

    assert failed["functions"] == "alone, shared" or failed["functions"] == "shared, alone"
    assert (broken["ready"], broken["checks"]["reload"]["ok"]) == (True, False)
    assert "was never closed" in broken["checks"]["reload"]["detail"]
    lines = served.text
    assert lines.count('"Swapped"') == 4
    assert lines.count(sentence) == 1


async def test_a_data_file_that_a_start_reads_is_watched_in_every_process(
    project: Project,
) -> None:
    greeting = project.folder / "greeting.txt"
    greeting.write_text("v1")
    project.save("v0", READS_AT_START.replace("STREAM", project.stream))
    arguments = ("app.yaml", "--workers", "2", "--reload")
    async with serving(project.folder, *arguments, **project.environment) as served:
        await served.wait_for_line("Ready")
        before = await project.versions("shared", 2) | await project.versions("alone", 1)
        greeting.write_text("v2")
        await served.wait_for_line("Swapped", function="shared")
        after = await project.versions("shared", 2) | await project.versions("alone", 1)

    assert (before, after) == ({"v1"}, {"v2"})


async def test_a_function_gets_a_process_of_its_own_and_gives_it_up_again(project: Project) -> None:
    project.declare(isolated="false")
    arguments = ("app.yaml", "--workers", "2", "--reload")
    async with serving(project.folder, *arguments, **project.environment) as served:
        await served.wait_for_line("Ready", count=3)
        before = {child.pid for child in psutil.Process(served.process.pid).children()}
        assert (await project.ask("alone"))[1] in before
        project.declare(isolated="true")
        await served.wait_for_line("Bound again", function="alone")
        _, own = await project.ask("alone")
        ready = await _readiness(served)
        project.declare(isolated="false")
        await served.wait_for_line("Bound again", function="alone", count=2)
        assert (await project.ask("alone"))[1] in before
        psutil.wait_procs([psutil.Process(own)] if psutil.pid_exists(own) else [], timeout=10)
        await eventually(lambda: _has_no_own_process(served), "one process less in /readyz")

    assert own not in before
    assert not psutil.pid_exists(own)
    assert ready["ready"]
    assert ready["checks"]["worker-isolated-alone"]["ok"]


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
async def test_sighup_reloads_once_and_watches_nothing(
    project: Project, workers: tuple[str, ...]
) -> None:
    project.declare(isolated="false")
    async with serving(project.folder, "app.yaml", *workers, **project.environment) as served:
        await served.wait_for_line("Ready", count=3 if workers else 1)
        project.save("v2")
        assert (await project.ask("shared"))[0] == "v1"
        served.send(signal.SIGHUP)
        await served.wait_for_line("Swapped", function="shared")
        assert await project.versions("shared", 2 if workers else 1) == {"v2"}
        served.send(signal.SIGHUP)
        await served.wait_for_line("Reloaded, and nothing has changed")
        project.save("v3", "broken(\n")
        served.send(signal.SIGHUP)
        await served.wait_for_line("Not reloaded, the last good version runs on")
        assert await project.versions("shared", 2 if workers else 1) == {"v2"}


async def test_a_host_without_workers_gives_no_function_a_process_of_its_own(
    project: Project,
) -> None:
    project.declare(isolated="false")
    async with serving(project.folder, "app.yaml", "--reload", **project.environment) as served:
        await served.wait_for_line("Ready")
        project.declare(isolated="true")
        failed = await served.wait_for_line(
            "Not reloaded, the last good version runs on", function="alone"
        )
        assert (await project.ask("alone"))[0] == "v1"

    assert "a process of its own needs a supervisor" in failed["wrong"]
    assert failed["remedy"] == "start the host again"


async def test_a_worker_that_is_started_again_runs_what_is_on_disk(project: Project) -> None:
    async with serving(
        project.folder, "app.yaml", "--workers", "1", **project.environment
    ) as served:
        await served.wait_for_line("Ready", count=3)
        _, process = await project.ask("alone")
        project.save("v2")
        psutil.Process(process).kill()
        await served.wait_for_line("Ready", count=4)
        version, other = await project.ask("alone")

    assert (version, other != process) == ("v2", True)
