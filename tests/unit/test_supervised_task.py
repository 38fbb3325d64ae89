"""Supervised tasks: a failure is logged, and the task runs again."""

import asyncio

import pytest
import structlog

from runtime.supervised_task import SupervisedTask


class Runs:
    """The behaviour of each run of a task, in order; the last run waits for ever."""

    def __init__(self, *endings: BaseException) -> None:
        self.endings = list(endings)
        self.count = 0
        self.waits = asyncio.Event()

    async def run(self) -> None:
        self.count += 1
        if self.endings:
            raise self.endings.pop(0)
        self.waits.set()
        await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.supervised_task.RESTART_FIRST_S", 0.001)


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("bad"),
        RuntimeError("worse"),
        GeneratorExit(),
        BaseExceptionGroup("several", [GeneratorExit(), ValueError("x")]),
        asyncio.CancelledError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_whatever_a_run_raises_another_begins(
    failure: BaseException,
) -> None:
    runs = Runs(failure, failure)
    task = SupervisedTask(runs.run, "the task").start()

    await asyncio.wait_for(runs.waits.wait(), 60)
    assert runs.count == 3
    assert task.is_flowing
    await task.stop()
    assert not task.is_flowing


async def test_a_task_that_is_cancelled_from_elsewhere_begins_again() -> None:
    runs = Runs()
    task = SupervisedTask(runs.run, "the task").start()
    await asyncio.wait_for(runs.waits.wait(), 60)
    runs.waits.clear()
    [running] = [each for each in asyncio.all_tasks() if each.get_name() == "the task"]
    running.cancel()

    await asyncio.wait_for(runs.waits.wait(), 60)
    assert runs.count == 2
    await task.stop()


async def test_a_task_does_not_flow_until_it_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.supervised_task.RESTART_FIRST_S", 3600.0)
    failed = asyncio.Event()
    task = SupervisedTask(Runs(ValueError("bad")).run, "the task", on_failure=failed.set).start()
    assert task.is_flowing

    await asyncio.wait_for(failed.wait(), 60)
    assert not task.is_flowing
    assert not task.has_ended
    await task.stop()
    assert task.has_ended


async def test_a_run_that_returns_ends_the_task() -> None:
    calls = 0

    async def run() -> None:
        nonlocal calls
        calls += 1

    task = SupervisedTask(run, "the task").start()
    await asyncio.gather(*(each for each in asyncio.all_tasks() if each.get_name() == "the task"))
    assert calls == 1
    assert task.has_ended


async def test_a_stopped_task_that_fails_while_it_ends_stays_ended() -> None:
    begun = asyncio.Event()

    async def run() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("bad")

    task = SupervisedTask(run, "the task").start()
    await begun.wait()
    await task.stop()
    assert task.has_ended


async def test_a_failure_is_logged_with_the_name_and_the_traceback() -> None:
    failure = ValueError("bad")
    runs = Runs(failure)
    with structlog.testing.capture_logs() as lines:
        task = SupervisedTask(runs.run, "the task").start()
        await asyncio.wait_for(runs.waits.wait(), 60)
        await task.stop()

    [line] = lines
    assert (line["log_level"], line["task"]) == ("error", "the task")
    assert line["exc_info"] is failure
