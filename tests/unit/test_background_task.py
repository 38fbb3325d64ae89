"""A background task goes on after what nobody foresaw, and says so."""

import asyncio

import pytest
import structlog

from functions.domain import background_task
from functions.domain.background_task import BackgroundTask

pytestmark = pytest.mark.asyncio


class _Failing(BackgroundTask):
    def __init__(self) -> None:
        super().__init__(structlog.stdlib.get_logger())
        self.runs: asyncio.Queue[int] = asyncio.Queue()
        self._count = 0

    async def _run(self) -> None:
        self._count += 1
        self.runs.put_nowait(self._count)
        if self._count < 3:
            raise ValueError("unforeseen")
        await asyncio.get_running_loop().create_future()


async def test_a_failure_is_logged_and_the_task_begins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_task, "_FIRST_PAUSE_S", 0.01)
    with structlog.testing.capture_logs() as lines:
        task = _Failing()
        task.start()
        async with asyncio.timeout(10):
            assert [await task.runs.get() for _ in range(3)] == [1, 2, 3]
        await task.stop()

    assert [(line["log_level"], line["task"]) for line in lines] == [("error", "_Failing")] * 2
    assert lines[1]["pause_s"] == 2 * lines[0]["pause_s"]


async def test_a_task_that_was_not_started_can_be_stopped() -> None:
    await _Failing().stop()
