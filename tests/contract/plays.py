"""The behaviours of a function in one call."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tests.contract.hosting import OwnProcess
from tests.contract.scene import Scene
from tests.contract.stage import Call
from tests.contract.wire import PROGRESS


@dataclass(frozen=True, slots=True)
class Play:
    """The function's behaviour in one call."""

    async def perform(self, scene: Scene, call: Call) -> None:
        """Have the function behave so."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Act(Play):
    """The function ends its call at once, by a return or an exception."""

    act: str
    details: dict[str, Any] = field(default_factory=dict)

    async def perform(self, scene: Scene, call: Call) -> None:
        call.answer(self.act, **self.details)


@dataclass(frozen=True, slots=True)
class Hang(Play):
    """The function never ends its call. An async function is cancelled, a thread is abandoned."""

    async def perform(self, scene: Scene, call: Call) -> None:
        scene.counted["timeouts"] += 1
        if not scene.kind.is_threaded:
            await call.wait_until_left()


@dataclass(frozen=True, slots=True)
class Outlast(Play):
    """The function works for more than twice its ack wait, then returns."""

    ack_wait_s: float

    async def perform(self, scene: Scene, call: Call) -> None:
        def look() -> bool | None:
            at_s = [
                frame.seen_s
                for frame in scene.wire.frames
                if (frame.place, frame.verb) == (scene.place, PROGRESS)
            ]
            lasted_s = at_s[-1] - call.arrived_s if at_s else 0
            return True if lasted_s > 2.2 * self.ack_wait_s else None

        await scene.wire.wait_for(look, "signs of life for twice the ack wait")
        await scene.expect_held()
        assert (await scene.look())["num_redelivered"] == 0
        call.answer("return")


@dataclass(frozen=True, slots=True)
class Crash(Play):
    """The function ends its process."""

    async def perform(self, scene: Scene, call: Call) -> None:
        call.answer("crash")
        await call.wait_until_left()
        scene.counted.clear()
        if not scene.kind.is_isolated:
            # Only an operator or a service manager would start this host again.
            assert isinstance(scene.host, OwnProcess)
            await scene.host.wait_until_ended()
            await scene.restart()


@dataclass(frozen=True, slots=True)
class ReturnWhileDraining(Play):
    """The host is told to end; the function returns when the host no longer pulls."""

    async def perform(self, scene: Scene, call: Call) -> None:
        draining = asyncio.create_task(scene.host.drain())
        await scene.wait_until_nobody_pulls()
        await scene.expect_held()
        call.answer("return")
        await draining


@dataclass(frozen=True, slots=True)
class OutlastGrace(Play):
    """The host is told to end; the function does not return within the host's grace period."""

    async def perform(self, scene: Scene, call: Call) -> None:
        await scene.host.drain()


@dataclass(frozen=True, slots=True)
class NotCalled(Play):
    """The function is not called with the message."""

    is_delivered: bool


RETURN = Act("return")
HANG = Hang()
CRASH = Crash()
NOT_CALLED = NotCalled(is_delivered=True)
NOT_DELIVERED = NotCalled(is_delivered=False)


def raises(error: str) -> Act:
    return Act("raise", {"error": error})


def raises_by(schedule_s: list[float]) -> Act:
    """The function sets its own retry schedule and fails."""
    return Act("raise", {"error": "ValueError", "schedule": schedule_s})


def retries(reason: str, delay_s: float) -> Act:
    return Act("retry", {"reason": reason, "delay_s": delay_s})


def rejects(code: str, reason: str) -> Act:
    return Act("reject", {"code": code, "reason": reason})
