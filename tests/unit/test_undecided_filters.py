"""What is told of filters that were not evaluated."""

from datetime import UTC, datetime, timedelta

import structlog

from functions.domain.route_decisions import Decision
from functions.ingest.undecided import UndecidedFilters

TIME = datetime(2026, 11, 1, tzinfo=UTC)
STOPPED = Decision("undecided", "FILTER_STOPPED", "it took too long")
OVER = Decision("undecided", "FILTERS_OVER_BUDGET", "no time is left")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def undecided() -> tuple[UndecidedFilters, Clock]:
    clock = Clock()
    return UndecidedFilters(structlog.stdlib.get_logger(), clock), clock


def test_a_notice_counts_the_messages_and_names_routes_and_the_first_time() -> None:
    found, _ = undecided()
    for number in (3, 1, 2):
        found.add("t", f"r{number}", TIME + timedelta(seconds=number), STOPPED)
    found.add("t", "r1", TIME, OVER)
    found.add("other", "r9", TIME, STOPPED)
    notices = found.notices()
    assert [(each.tenant_id, each.data["code"], each.count) for each in notices] == [
        ("other", "FILTER_STOPPED", 1),
        ("t", "FILTERS_OVER_BUDGET", 1),
        ("t", "FILTER_STOPPED", 3),
    ]
    assert notices[2].data["route_ids"] == ["r1", "r2", "r3"]
    assert notices[2].data["since"] == TIME + timedelta(seconds=1)
    assert notices[2].key.startswith("filters_undecided/FILTER_STOPPED/")


def test_a_tenant_is_told_again_after_a_minute_of_what_came_since() -> None:
    found, clock = undecided()
    found.add("t", "r1", TIME, STOPPED)
    told = found.notices()
    # Another batch adds one before the notice is committed, and one afterwards.
    found.add("t", "r2", TIME, STOPPED)
    found.told(told)
    later = TIME + timedelta(seconds=5)
    found.add("t", "r3", later, STOPPED)
    assert found.notices() == []
    clock.now_s = 61.0
    [again] = found.notices()
    assert again.count == 2
    found.told([again])
    clock.now_s = 200.0
    assert found.notices() == []
    found.add("t", "r4", later, STOPPED)
    [last] = found.notices()
    assert (last.count, last.data["since"], last.data["route_ids"]) == (1, later, ["r4"])


def test_what_was_not_committed_is_told_with_the_next_batch() -> None:
    found, _ = undecided()
    found.add("t", "r1", TIME, STOPPED)
    assert found.notices()
    assert found.notices()[0].count == 1


def test_the_tenants_that_are_counted_are_bounded() -> None:
    found, _ = undecided()
    for number in range(10_001):
        found.add(f"t{number}", "r", TIME, STOPPED)
    assert len(found.notices()) == 1
