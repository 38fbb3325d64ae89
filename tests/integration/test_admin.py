import asyncio
import gc
import json
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import uvloop

from runtime.broker.connection import Broker
from runtime.errors import ConfigError
from runtime.observe.admin import MAX_LAG_S, AdminServer
from runtime.observe.health import LoopWatch, Probe
from runtime.observe.metrics import Metrics

HOST = "127.0.0.1"


@asynccontextmanager
async def serving(
    probes: dict[str, Probe] | None = None,
    *,
    metrics: Metrics | None = None,
    socket_path: Path | None = None,
    workers: dict[str, Path] | None = None,
    is_alive: Callable[[], bool] = lambda: True,
) -> AsyncIterator[tuple[AdminServer, LoopWatch]]:
    metrics = metrics or Metrics("1.0.0")
    watch = LoopWatch(metrics)
    watch.start()
    server = AdminServer(
        HOST,
        0,
        probes or {},
        metrics.registry,
        watch=watch,
        is_alive=is_alive,
        socket_path=socket_path,
        workers=workers,
    )
    await server.start()
    try:
        yield server, watch
    finally:
        await server.stop()
        watch.stop()


async def get(server: AdminServer, target: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{HOST}:{server.port}{target}")


async def passes() -> str | None:
    return None


async def fails() -> str | None:
    raise ConnectionError("postgres://me:hunter2@10.0.0.7/db")


async def test_a_host_that_only_a_new_start_helps_is_not_healthy() -> None:
    async with serving(is_alive=lambda: False) as (server, _):
        answer = await get(server, "/healthz")
    assert answer.status_code == 503
    assert answer.json()["healthy"] is False


async def test_a_host_whose_loop_turns_is_healthy() -> None:
    async with serving() as (server, _):
        answer = await get(server, "/healthz")
    assert answer.status_code == 200
    assert answer.json()["healthy"] is True


async def test_a_host_whose_loop_is_late_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoopWatch, "lag_s", MAX_LAG_S)
    async with serving() as (server, _):
        answer = await get(server, "/healthz")
    assert answer.status_code == 503
    assert answer.json() == {"healthy": False, "loop_lag_s": MAX_LAG_S}


async def test_a_host_is_ready_when_every_probe_passes(broker: Broker) -> None:
    async def nats() -> str | None:
        await broker.ping()
        return None

    async with serving({"nats": nats, "functions": passes}) as (server, _):
        answer = await get(server, "/readyz")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "ready": True,
        "checks": {
            "nats": {"ok": True, "detail": "OK"},
            "functions": {"ok": True, "detail": "OK"},
        },
    }


async def test_a_host_is_not_ready_when_one_probe_fails_and_says_which_without_internals() -> None:
    with structlog.testing.capture_logs():
        async with serving({"nats": passes, "postgres": fails}) as (server, _):
            answer = await get(server, "/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["postgres"] == {"ok": False, "detail": "FAILED"}
    assert "hunter2" not in answer.text


async def test_metrics_are_in_the_format_that_prometheus_reads() -> None:
    metrics = Metrics("1.2.3")
    metrics.function("ingest").count("acked", 7)
    async with serving(metrics=metrics) as (server, _):
        answer = await get(server, "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'runtime_messages_total{function="ingest",outcome="acked"} 7.0' in answer.text


async def test_there_is_nothing_else_to_see() -> None:
    async with serving() as (server, _):
        assert (await get(server, "/")).status_code == 404
        assert "server" not in (await get(server, "/healthz")).headers
        async with httpx.AsyncClient() as client:
            posted = await client.post(f"http://{HOST}:{server.port}/healthz")
        assert posted.status_code == 405


async def test_a_taken_port_is_a_clear_error() -> None:
    metrics = Metrics("1.0.0")
    async with serving() as (first, watch):
        second = AdminServer(HOST, first.port, {}, metrics.registry, watch=watch)
        with pytest.raises(
            ConfigError, match=rf"port {first.port} is taken; free it or set RUNTIME_ADMIN_PORT"
        ):
            await second.start()
        await second.stop()


async def test_a_port_is_free_again_after_the_stop() -> None:
    async with serving() as (first, _):
        port = first.port
        await get(first, "/healthz")
    metrics = Metrics("1.0.0")
    watch = LoopWatch(metrics)
    again = AdminServer(HOST, port, {}, metrics.registry, watch=watch)
    await again.start()
    assert again.port == port
    await again.stop()


async def test_an_address_that_is_not_ours_is_a_clear_error() -> None:
    metrics = Metrics("1.0.0")
    watch = LoopWatch(metrics)
    server = AdminServer("192.0.2.1", 8081, {}, metrics.registry, watch=watch)
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:8081"):
        await server.start()


async def test_signals_stay_with_the_host() -> None:
    former = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with serving():
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == former


async def test_a_stop_does_not_wait_for_an_idle_connection_and_leaves_nothing_open() -> None:
    async with httpx.AsyncClient() as client, serving() as (server, _):
        await client.get(f"http://{HOST}:{server.port}/healthz")
    gc.collect()


async def supervised(directory: Path) -> tuple[httpx.Response, httpx.Response, httpx.Response]:
    """A supervisor's metrics and readiness with two workers, then its readiness with one."""
    paths = {"1": directory / "1.sock", "2": directory / "2.sock"}
    first, second = Metrics("1.0.0"), Metrics("1.0.0")
    first.function("ingest").count("acked", 3)
    second.function("ingest").count("acked", 4)
    second.function("ingest").observe(0.2)
    async with serving(workers=paths) as (supervisor, _):
        async with (
            serving({"nats": passes}, metrics=first, socket_path=paths["1"]),
            serving(metrics=second, socket_path=paths["2"]),
        ):
            metrics = await get(supervisor, "/metrics")
            both = await get(supervisor, "/readyz")
        async with serving(workers=paths) as (another, _):
            neither = await get(another, "/readyz")
    assert not paths["1"].exists()
    return metrics, both, neither


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
async def test_a_supervisor_speaks_for_its_workers(
    server_directory: Path, run: Callable[[Coroutine[Any, Any, Any]], Any]
) -> None:
    metrics, both, neither = await asyncio.to_thread(run, supervised(server_directory))
    assert (
        'runtime_messages_total{function="ingest",outcome="acked",worker="1"} 3.0' in metrics.text
    )
    assert (
        'runtime_messages_total{function="ingest",outcome="acked",worker="2"} 4.0' in metrics.text
    )
    assert 'runtime_handler_seconds_count{function="ingest",worker="2"} 1.0' in metrics.text
    assert metrics.text.count("# TYPE runtime_messages_total counter") == 1
    assert 'worker="supervisor"' in metrics.text
    assert both.json()["ready"] is True
    assert set(json.loads(both.text)["checks"]) == {"worker-1", "worker-2"}
    assert neither.status_code == 503
    assert neither.json()["checks"]["worker-2"] == {"ok": False, "detail": "UNREACHABLE"}


async def test_a_worker_that_is_not_ready_makes_its_supervisor_unready(
    server_directory: Path,
) -> None:
    path = server_directory / "1.sock"
    with structlog.testing.capture_logs():
        async with (
            serving({"postgres": fails}, socket_path=path),
            serving(workers={"1": path}) as (supervisor, _),
        ):
            answer = await get(supervisor, "/readyz")
    assert answer.json()["checks"] == {"worker-1": {"ok": False, "detail": "NOT_READY"}}


async def test_a_socket_left_by_a_killed_worker_is_taken_over(server_directory: Path) -> None:
    path = server_directory / "1.sock"
    path.touch()
    async with serving(socket_path=path):
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o600


async def test_a_socket_path_that_is_too_long_is_a_clear_error(server_directory: Path) -> None:
    metrics = Metrics("1.0.0")
    path = server_directory / ("x" * 200)
    server = AdminServer(HOST, 0, {}, metrics.registry, watch=LoopWatch(metrics), socket_path=path)
    with pytest.raises(ConfigError, match="shorter path"):
        await server.start()


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1", 200), ("localhost:8081", 200), ("evil.example", 400), ("127.0.0.1.evil", 400)],
)
async def test_a_web_page_under_a_name_of_its_own_is_told_nothing(host: str, status: int) -> None:
    async with serving() as (server, _), httpx.AsyncClient(trust_env=False) as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            answer = await client.get(f"http://{HOST}:{server.port}{path}", headers={"Host": host})
            assert answer.status_code == status
