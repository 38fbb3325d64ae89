"""Versions of a function: which version a call runs, and when the old one has ended."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from runtime.call.call_task import create_call_task
from runtime.call.function_version import FunctionVersion, Owner, cancel_tasks_of, running_owner
from runtime.call.threads import FunctionThreads
from runtime.context import Scope
from runtime.dispatch import DONE, Dead, Dispatcher, Later
from runtime.loader import Function, load
from runtime.manifest.model import FunctionSpec
from runtime.message import Message
from runtime.observe.logs import get_logger

NAME = "versioned"
Handler = Callable[..., Any]


def _function(handler: Handler, shape: str = "on_event", **spec: Any) -> Function:
    stated = {"consumer": {"stream": "S"}, "handler": f"tests.support.workload:{shape}", **spec}
    return replace(load(NAME, FunctionSpec.model_validate(stated)), handler=handler)


def _scope() -> Scope:
    return Scope(NAME, None, None, {}, get_logger("test"))  # type: ignore[arg-type]


def _version(handler: Handler, shape: str = "on_event", **spec: Any) -> FunctionVersion:
    return FunctionVersion(_function(handler, shape, **spec), _scope())


def _dispatcher(handler: Handler, shape: str = "on_event", **spec: Any) -> Dispatcher:
    threads = FunctionThreads(NAME, 1)
    return Dispatcher(_function(handler, shape, **spec), _scope(), threads=threads)


def _message(attempt: int = 1, sequence: int = 1) -> Message:
    return Message("s.a", b"x", stream="S", sequence=sequence, attempt=attempt)


def _noting(calls: list[str], name: str) -> Handler:
    async def handler(given: Any, ctx: Any) -> None:
        calls.append(name)

    return handler


async def _start(call: Awaitable[Any], begun: asyncio.Event) -> "asyncio.Task[Any]":
    async def run() -> Any:
        return await call

    task = create_call_task(run())
    await begun.wait()
    return task


async def test_a_call_ends_with_the_version_with_which_it_began_and_the_next_runs_the_new_one() -> (
    None
):
    calls: list[str] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(event: Any, ctx: Any) -> None:
        begun.set()
        await go_on.wait()
        calls.append("old")

    dispatcher = _dispatcher(slow)
    running = await _start(dispatcher.run_event(_message()), begun)
    old = dispatcher.swap(_version(_noting(calls, "new")))

    assert await dispatcher.run_event(_message(sequence=2)) is DONE
    assert not old.ended.is_set()
    go_on.set()
    assert await running is DONE
    assert old.ended.is_set()
    assert calls == ["new", "old"]


async def test_a_version_without_a_running_call_has_ended_when_it_is_replaced() -> None:
    dispatcher = _dispatcher(_noting([], "old"))
    await dispatcher.run_event(_message())

    assert dispatcher.swap(_version(_noting([], "new"))).ended.is_set()


async def test_the_halves_of_a_batch_run_with_the_version_of_the_whole() -> None:
    calls: list[int] = []
    dispatcher: Dispatcher

    async def old(batch: Any, ctx: Any) -> None:
        calls.append(len(list(batch)))
        if len(calls) == 1:
            dispatcher.swap(_version(_noting([], "new"), "on_batch"))
            raise ValueError("one of these")

    dispatcher = _dispatcher(old, "on_batch")
    version = dispatcher.version
    outcomes = await dispatcher.run_batch([_message(sequence=n) for n in (1, 2)])

    assert (calls, outcomes) == ([2, 1, 1], [DONE, DONE])
    assert version.ended.is_set()


async def test_the_retry_policy_of_a_new_version_counts_from_its_first_call() -> None:
    async def failing(event: Any, ctx: Any) -> None:
        raise ValueError("no")

    dispatcher = _dispatcher(failing, retry={"attempts": 5})
    assert isinstance(await dispatcher.run_event(_message(attempt=2)), Later)
    dispatcher.swap(_version(failing, retry={"attempts": 2}))

    assert isinstance(await dispatcher.run_event(_message(attempt=2)), Dead)


async def test_timeouts_are_counted_across_versions_and_never_twice() -> None:
    begun = asyncio.Event()

    async def hangs(event: Any, ctx: Any) -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    dispatcher = _dispatcher(hangs, timeout="50ms")
    await create_call_task(dispatcher.run_event(_message()))
    begun.clear()
    running = await _start(dispatcher.run_event(_message(sequence=2)), begun)
    dispatcher.swap(_version(_noting([], "new")))
    assert dispatcher.timeouts == 1

    await running
    assert dispatcher.timeouts == 2


async def test_only_the_background_tasks_of_the_old_version_are_cancelled() -> None:
    tasks: dict[str, asyncio.Task[None]] = {}

    def starting(name: str) -> Handler:
        async def background() -> None:
            await asyncio.get_running_loop().create_future()

        async def handler(event: Any, ctx: Any) -> None:
            tasks[name] = asyncio.create_task(background())

        return handler

    dispatcher = _dispatcher(starting("old"))

    async def call_both() -> FunctionVersion:
        await dispatcher.run_event(_message())
        old = dispatcher.swap(_version(starting("new")))
        await dispatcher.run_event(_message(sequence=2))
        return old

    old = await create_call_task(call_both())
    await cancel_tasks_of(old.owner, NAME)

    assert tasks["old"].cancelled()
    assert not tasks["new"].done()
    tasks["new"].cancel()


async def test_a_librarys_own_task_is_left_to_the_stop_of_the_module() -> None:
    owner, found = Owner(), asyncio.Event()

    async def use_a_library() -> "asyncio.Task[bool]":
        running_owner.set(owner)
        return asyncio.create_task(found.wait())  # Its coroutine is asyncio's.

    task = await asyncio.create_task(use_a_library())
    await cancel_tasks_of(owner, NAME)

    assert not task.done()
    found.set()
    assert await task
