"""Signals to a serving host, beyond the one that starts a drain."""

import asyncio
import signal
import sys
from pathlib import Path

import psutil
import pytest

from runtime.process.workers import WorkerSpec, WorkerSupervisor
from tests.support.servers import NatsServer
from tests.support.serving import serving

MODULE = """
import asyncio
from runtime import Context

async def serve(ctx: Context) -> None:
    await ctx.stopping.wait()
    ctx.log.info("Asked to stop")
    await asyncio.Event().wait()
"""
MANIFEST = "functions:\n  stubborn: {handler: signals:serve, service: true}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "signals.py").write_text(MODULE)
    (tmp_path / "app.yaml").write_text(MANIFEST)
    return tmp_path


@pytest.fixture
def addresses(nats_server: NatsServer) -> dict[str, str]:
    return {"NATS_URL": nats_server.url, "DATABASE_URL": "unused"}


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_second_signal_while_a_service_drains_ends_the_host_without_a_traceback(
    folder: Path, addresses: dict[str, str], workers: str
) -> None:
    async with serving(folder, "app.yaml", "--workers", workers, **addresses) as served:
        await served.wait_for_line("Ready", count=1 if workers == "1" else 3)
        served.send(signal.SIGTERM)
        await served.wait_for_line("Asked to stop")
        served.send(signal.SIGTERM)
        code = await served.wait_until_ended(15)

    assert code == 0
    assert "Traceback" not in served.text
    assert "CancelledError" not in served.text


async def test_a_service_that_does_not_stop_in_time_ends_the_host_without_a_traceback(
    folder: Path, addresses: dict[str, str]
) -> None:
    async with serving(folder, RUNTIME_GRACE_S="0.3", **addresses) as served:
        await served.wait_for_line("Ready")
        served.send(signal.SIGTERM)
        code = await served.wait_until_ended(15)

    assert code == 0
    assert "Service did not stop in time and was ended" in served.text
    assert "Traceback" not in served.text


async def test_sighup_reloads_a_host_without_a_terminal_and_its_workers_and_ends_none(
    folder: Path, addresses: dict[str, str]
) -> None:
    addresses["RUNTIME_GRACE_S"] = "0.3"
    async with serving(folder, "app.yaml", "--workers", "2", **addresses) as served:
        await served.wait_for_line("Ready", count=3)
        for process in [served.process.pid, *_children(served.process.pid)]:
            psutil.Process(process).send_signal(signal.SIGHUP)
        await served.wait_for_line("Reloaded, and nothing has changed", count=3)
        served.send(signal.SIGTERM)
        code = await served.wait_until_ended(15)

    assert code == 0
    assert "A worker ended" not in served.text


async def test_a_worker_that_is_asked_to_end_by_itself_waits_for_no_other(
    folder: Path, addresses: dict[str, str]
) -> None:
    """Its endpoints end at once, since callers in other workers can ask other instances."""
    (folder / "signals.py").write_text(MODULE.replace("    await asyncio.Event().wait()\n", ""))
    async with serving(folder, "app.yaml", "--workers", "2", **addresses) as served:
        await served.wait_for_line("Ready", count=3)
        psutil.Process(_children(served.process.pid)[0]).send_signal(signal.SIGTERM)
        ended = await asyncio.wait_for(
            served.wait_for_line("A worker ended, it is started again"), 8
        )
        await served.wait_for_line("Ready", count=4)
        served.send(signal.SIGTERM)
        code = await asyncio.wait_for(served.wait_until_ended(), 8)

    assert ended["ended_by"] == "exit code 0"
    assert code == 0


def _children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]


async def test_a_worker_that_is_spawned_during_a_drain_is_asked_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, spawning, go = asyncio.create_subprocess_exec, asyncio.Event(), asyncio.Event()

    async def slowly(*arguments: str, **options: object) -> object:
        spawning.set()
        await go.wait()
        return await real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("runtime.process.workers.asyncio.create_subprocess_exec", slowly)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    supervisor = WorkerSupervisor(command, {}, [WorkerSpec("1")])
    await supervisor.start()
    await spawning.wait()
    draining = asyncio.create_task(supervisor.drain(5, asyncio.Event()))
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait_for(draining, 4)
    [process] = supervisor._processes.values()
    code = process.returncode
    await supervisor.stop()

    assert code == -signal.SIGTERM
