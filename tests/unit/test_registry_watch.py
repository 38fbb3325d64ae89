"""Changes of the registry as a door hears them, without a database."""

import asyncio

import pytest

from functions.http_gateway.registry_changes import RegistryChanges
from functions.ingest.registry_watch import ChangeLog


async def test_each_change_is_told_after_the_position_of_the_last_answer() -> None:
    log = ChangeLog()
    first = log.since("")
    assert first.changes == []
    waited = log.next_change
    for change in ("device/t/d", "routes/t", "message-policies/t", "tenant/t", "all"):
        log.hear(change)
    assert waited.is_set()
    answer = log.since(first.position)
    assert answer.changes == ["device/t/d", "tenant/t", "all"]
    assert log.since(answer.position).changes == []
    log.hear("tenant/u")
    assert log.since(answer.position).changes == ["tenant/u"]


async def test_who_asked_another_host_before_is_told_what_came_lately() -> None:
    log, another = ChangeLog(), ChangeLog()
    log.hear("tenant/t")
    answer = log.since(another.since("").position)
    assert answer.changes == ["tenant/t"]
    assert log.since(answer.position).changes == []


async def test_many_changes_are_told_in_parts_and_too_many_as_all() -> None:
    log = ChangeLog()
    begin = log.since("").position
    for number in range(5_000):
        log.hear(f"device/t/d{number}")
    told: list[str] = []
    position = begin
    while changes := (answer := log.since(position)).changes:
        told += changes
        position = answer.position
    assert told == [f"device/t/d{number}" for number in range(5_000)]
    for number in range(6_000):
        log.hear(f"device/t/e{number}")
    assert log.since(begin).changes == ["all"]
    assert len(log.since(position).changes) == 2_000


@pytest.mark.parametrize(
    ("changes", "current"),
    [
        ([], (True, True, True)),
        (["device/t/d"], (False, True, True)),
        (["tenant/t"], (False, False, True)),
        (["all"], (False, False, False)),
        ([f"device/x/{number}" for number in range(10_001)], (False, False, False)),
    ],
)
async def test_an_answer_counts_until_its_device_or_tenant_changes(
    changes: list[str], current: tuple[bool, ...]
) -> None:
    heard = RegistryChanges()
    at_s = asyncio.get_running_loop().time()
    for change in changes:
        heard.hear(change)
    asked = (heard.is_current(at_s, "t", "d"), heard.is_current(at_s, "t", "e"))
    assert (*asked, heard.is_current(at_s, "u", "d")) == current
    assert heard.is_current(at_s + 3600, "t", "d")
