"""Decides when an endpoint that only fails is disabled, and when its tenant is told. No I/O.

The rule is Svix's: an endpoint is disabled when all attempts failed for five days. The clock of the
five days starts only after several failures within 24 hours, of which the first and the last are
12 hours apart. One success clears it. Time without attempts does not advance the clock.

Source: docs.svix.com, "Disabling failing endpoints".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

EndpointState = Literal["unknown", "healthy", "failing", "disabled"]

GONE = "ENDPOINT_GONE"
FAILING = "ENDPOINT_FAILING"
_ALL_PERCENT = 100


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers of the rule.

    Attributes:
        least_failures: failures within `within` that start the clock.
        within: the time in which they happen.
        span: least time between the first and the last of them.
        disable_after: what the clock must show to disable the endpoint.
        thresholds: shares of `disable_after`, in percent, at which the tenant is told; ascending.
    """

    least_failures: int = 3
    within: timedelta = timedelta(hours=24)
    span: timedelta = timedelta(hours=12)
    disable_after: timedelta = timedelta(days=5)
    thresholds: tuple[int, ...] = (50, 70, 90)


@dataclass(frozen=True, slots=True)
class FailureHour:
    """The failures of one endpoint in one hour."""

    failures: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of an endpoint.

    Attributes:
        failing_since: the first failure after the last success; None after a success.
        last_failure_at: the last failure.
        last_success_at: the last success.
        clock_started_at: when the clock was started; a success has removed it.
        told_percent: the highest threshold of which the tenant was told since the last recovery.
        disabled_at: when the endpoint was disabled for its failures.
    """

    failing_since: datetime | None = None
    last_failure_at: datetime | None = None
    last_success_at: datetime | None = None
    clock_started_at: datetime | None = None
    told_percent: int = 0
    disabled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows.

    Attributes:
        clock_started_at: the clock's start from now on; None when it does not run.
        percent: the share of the way to being disabled, 0 to 100.
        tell_percent: the threshold that was reached and not told yet; None for nothing to tell.
        disables: the endpoint's routes are disabled now.
        recovers: the endpoint works again after its tenant was told of failures, or after it was
            disabled: the tenant is told, and its routes are enabled.
    """

    clock_started_at: datetime | None = None
    percent: int = 0
    tell_percent: int | None = None
    disables: bool = False
    recovers: bool = False


def judge(health: Health, hours: Sequence[FailureHour], rules: Rules) -> Verdict:
    """The verdict on an endpoint.

    Args:
        health: what is known of it.
        hours: its failures by hour, oldest first; needed from `within` and an hour before the last
            judgement on.
        rules: the numbers of the rule.
    """
    if health.disabled_at is not None:
        return _judge_disabled(health, health.disabled_at)
    if health.failing_since is None or health.last_failure_at is None:
        return Verdict(recovers=health.told_percent > 0)
    # A success between two judgements, and another failure after it: the tenant is told of both.
    began_again = health.told_percent > 0 and health.clock_started_at is None
    clock = health.clock_started_at or find_clock_start(hours, health.failing_since, rules)
    if clock is None:
        return Verdict(recovers=began_again)
    percent = _percent(health.last_failure_at - clock, rules.disable_after)
    told = 0 if began_again else health.told_percent
    reached = [
        threshold for threshold in (*rules.thresholds, _ALL_PERCENT) if told < threshold <= percent
    ]
    return Verdict(
        clock,
        percent,
        max(reached, default=None),
        disables=percent == _ALL_PERCENT,
        recovers=began_again,
    )


def find_clock_start(
    hours: Sequence[FailureHour], failing_since: datetime, rules: Rules
) -> datetime | None:
    """When the clock starts: at the first failure that completes the condition; None before.

    Failures are known by hour, so the clock may start up to an hour late, and never early.
    """
    after_success = [_clip(hour, failing_since) for hour in hours if hour.last_at >= failing_since]
    for place, last in enumerate(after_success):
        within = [
            hour
            for hour in after_success[: place + 1]
            if hour.first_at >= last.last_at - rules.within
        ]
        if not within or last.last_at - within[0].first_at < rules.span:
            continue
        if sum(hour.failures for hour in within) >= rules.least_failures:
            return last.last_at
    return None


def state_of(health: Health) -> EndpointState:
    """The state that a person sees."""
    if health.disabled_at is not None:
        return "disabled"
    if health.failing_since is not None:
        return "failing"
    return "unknown" if health.last_success_at is None else "healthy"


def percent_of_the_way(health: Health, rules: Rules) -> int:
    """How far the endpoint is on the way to being disabled, 0 to 100."""
    if health.disabled_at is not None:
        return _ALL_PERCENT
    if health.clock_started_at is None or health.last_failure_at is None:
        return 0
    return _percent(health.last_failure_at - health.clock_started_at, rules.disable_after)


def _judge_disabled(health: Health, disabled_at: datetime) -> Verdict:
    works_again = health.last_success_at is not None and health.last_success_at > disabled_at
    return Verdict(
        None if works_again else health.clock_started_at,
        0 if works_again else _ALL_PERCENT,
        recovers=works_again,
    )


def _clip(hour: FailureHour, failing_since: datetime) -> FailureHour:
    """The hour without what happened before the last success; its count is that of the rest.

    How many of the failures came after the success is not known: at least the first and, if another
    one is the last, that.
    """
    if hour.first_at >= failing_since:
        return hour
    return FailureHour(1 + (hour.last_at > failing_since), failing_since, hour.last_at)


def _percent(passed: timedelta, whole: timedelta) -> int:
    return max(0, min(_ALL_PERCENT, int(passed * _ALL_PERCENT / whole)))


__all__ = [
    "FAILING",
    "GONE",
    "EndpointState",
    "FailureHour",
    "Health",
    "Rules",
    "Verdict",
    "find_clock_start",
    "judge",
    "percent_of_the_way",
    "state_of",
]
