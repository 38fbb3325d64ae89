"""Runs a host inside a test on real servers; the test decides the functions' behaviour."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import runtime
from runtime.broker import client
from runtime.broker.clock import Clock
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetter, DeadLetters, Selection
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.manifest.model import Manifest
from runtime.observe.metrics import Metrics
from tests.support.workload import behaviours

T = TypeVar("T")

DEADLINE_S = 60.0
GRACE_S = 10.0
QUICK: dict[str, Any] = {"attempts": 3, "delay": "100ms", "jitter": 0}
"""A retry policy for those who wait."""
_numbers = itertools.count(1)
_running: set[Host] = set()


def fresh(word: str) -> str:
    """A unique name."""
    return f"{word}_{next(_numbers)}_{secrets.token_hex(3)}"


async def eventually(
    condition: Callable[[], Awaitable[T | None]], what: str, timeout_s: float = DEADLINE_S
) -> T:
    """The first true value of `condition`; polls, for state that a server does not announce."""
    value: T | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while not (value := await condition()):  # noqa: ASYNC110 - a server tells nobody
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what} did not come within {timeout_s:g} s: {value!r}") from None
    return value


class Journal:
    """A thread-safe list of what functions did; `wait` returns when there are enough entries."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def add(self, entry: Any) -> None:
        self.entries.append(entry)
        self._loop.call_soon_threadsafe(self._changed.set)

    async def wait(self, count: int, timeout_s: float = DEADLINE_S) -> list[Any]:
        """The entries, as soon as there are at least that many."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self.entries) < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            found = f"{len(self.entries)} of {count} entries: {self.entries[-20:]!r}"
            raise AssertionError(found) from None
        return self.entries


def make_manifest(
    functions: Mapping[str, Any], streams: Mapping[str, Any] | None = None
) -> Manifest:
    """A manifest from the content of its file; a handler without a module is one of `workload`."""
    stated = {
        name: {**spec, "handler": _with_module(spec["handler"])} for name, spec in functions.items()
    }
    return Manifest.model_validate({"streams": streams or {}, "functions": stated})


def _with_module(handler: str) -> str:
    return handler if ":" in handler else f"tests.support.workload:{handler}"


async def start_host(
    nats_url: str,
    functions: Mapping[str, Any],
    *,
    streams: Mapping[str, Any] | None = None,
    database_url: str | None = None,
    nats_system_url: str | None = None,
    services: bool = True,
    metrics: Metrics | None = None,
    clock: Clock | None = None,
) -> Host:
    """Start a host that serves these functions; the caller must stop it."""
    manifest = make_manifest(functions, streams)
    host = Host(
        manifest,
        load_all(manifest),
        Addresses(nats_url, database_url, nats_system_url),
        metrics or Metrics("0.0.0"),
        HostOptions(services=services, clock=clock),
    )
    await host.start()
    return host


@asynccontextmanager
async def running_host(
    nats_url: str,
    functions: Mapping[str, Any],
    does: Mapping[str, Callable[..., Any]] | None = None,
    *,
    grace_s: float = GRACE_S,
    **options: Any,
) -> AsyncIterator[Host]:
    """Run a host, drain it at the end, and check that it left no task on the loop."""
    behaviours.update(does or {})
    before = asyncio.all_tasks()
    host = await start_host(nats_url, functions, **options)
    _running.add(host)
    try:
        yield host
    finally:
        _running.discard(host)
        await host.drain(grace_s)
    if _running:
        return  # The tasks may be those of another host, whose end is looked at later.
    left = {task for task in asyncio.all_tasks() - before if _is_ours(task)}
    if left:  # Cancelled a moment ago, some have not had their last turn yet.
        _, left = await asyncio.wait(left, timeout=1.0)
    assert not left, f"the host left tasks behind: {[task.get_coro() for task in left]}"


def _is_ours(task: "asyncio.Task[Any]") -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    if code is None or code.co_filename == client.__file__:
        return False  # Of a connection, which may be the test's own and have been rebuilt.
    return str(Path(runtime.__file__).parent) in code.co_filename


async def letters_of(broker: Broker, function: str) -> list[DeadLetter]:
    """The dead letters of one function."""
    listed = DeadLetters(broker).list(Selection(function=function))
    return [letter async for letter in listed]


async def wait_for_letters(broker: Broker, function: str, count: int = 1) -> list[DeadLetter]:
    """The dead letters of one function, as soon as there are at least that many."""

    async def look() -> list[DeadLetter] | None:
        found = await letters_of(broker, function)
        return found if len(found) >= count else None

    return await eventually(look, f"{count} dead letters of {function}") or []


async def consumer(broker: Broker, stream: str, durable: str) -> dict[str, Any]:
    """JetStream's info of a consumer."""
    return await broker.api(f"CONSUMER.INFO.{stream}.{durable}")


async def wait_until_settled(broker: Broker, stream: str, durable: str) -> None:
    """Return when the consumer has no message to deliver and no unsettled message."""

    async def look() -> bool:
        found = await consumer(broker, stream, durable)
        return not found["num_pending"] and not found["num_ack_pending"]

    await eventually(look, f"everything settled on {stream}/{durable}")
