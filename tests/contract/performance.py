"""Runs a row of the settling table for one kind of function, and verifies each step."""

from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from tests.contract.kinds import Kind
from tests.contract.plays import NotCalled
from tests.contract.refusal import Refusal
from tests.contract.scene import Scene
from tests.contract.settlements import ACK, Again, HandedOver
from tests.contract.table import ROWS, Row
from tests.support.host import wait_for_letters
from tests.support.versions import has_message_schedules

NEIGHBOUR = b'{"number": 1}'


def performances(*, in_own_process: bool) -> pytest.MarkDecorator:
    """Test parameters: each row with each of its kinds, in own processes or in the test's."""
    return pytest.mark.parametrize(
        ("row", "kind"),
        [
            pytest.param(row, kind, id=f"{row.name}-{kind.name}")
            for row in ROWS
            for kind in row.kinds
            if (row.in_own_process or kind.is_isolated) == in_own_process
        ],
    )


async def perform(row: Row, kind: Kind, broker: Broker, url: str, folder: Path) -> None:
    """Serve such a function, send it a message, and compare every step with the row."""
    scene = Scene(
        kind,
        broker,
        url,
        folder,
        spec=row.spec,
        payload=row.payload,
        grace_s=row.grace_s,
        in_own_process=row.in_own_process,
    )
    if row.refusal:
        scene.refusal = Refusal(broker, *row.refusal)
    try:
        await scene.open()
        await _play_steps(row, scene)
        if not kind.is_scheduled:
            await _expect_that_work_goes_on(scene)
        await scene.expect_silence()
    finally:
        await scene.close()
        if scene.refusal:
            await scene.refusal.end()


async def _play_steps(row: Row, scene: Scene) -> None:
    attempt, not_before_s = 0, 0.0
    is_cut = row.steps_without_schedules is not None and not has_message_schedules(scene.broker)
    steps = row.steps[: row.steps_without_schedules] if is_cut else row.steps
    for play, settlement in steps:
        if isinstance(play, NotCalled):
            attempt += play.is_delivered
            await settlement.verify(scene, attempt)
            continue
        attempt += 1
        call = await scene.stage.next_call()
        scene.meet(call)
        assert call.attempt == attempt
        assert not_before_s <= call.arrived_s
        await scene.expect_held()
        if attempt == 1 and scene.refusal:
            await scene.refusal.begin()
        await play.perform(scene, call)
        await settlement.verify(scene, attempt)
        if isinstance(settlement, Again) and settlement.is_waited_for:
            not_before_s = call.arrived_s + settlement.delay_s
        if isinstance(settlement, HandedOver):
            attempt -= 1
    if is_cut:
        # The server gives the message up, and says so; a host makes the dead letter.
        await wait_for_letters(scene.broker, scene.name)
        scene.letters += 1


async def _expect_that_work_goes_on(scene: Scene) -> None:
    """Expect that the same host serves the next message."""
    scene.place = scene.home
    await scene.send(NEIGHBOUR)
    call = await scene.stage.next_call()
    assert (call.message.data, call.attempt) == (NEIGHBOUR, 1)
    call.answer("return")
    await ACK.verify(scene, 1)
