"""Tells tenants of jobs that became dead letters: one notice for a route and hour."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from functions.domain.notices import Notice, is_notice_topic
from functions.route_delivery.job import Job, without_device_secret

_MAX_PAYLOAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A job that became a dead letter, and the reason code."""

    job: Job
    code: str


@dataclass(frozen=True, slots=True)
class LastAttempt:
    """What the log of attempts says of a job."""

    attempts: int
    error_code: str | None
    status_code: int | None


def first_of_routes(given_up: Sequence[GivenUp]) -> list[tuple[GivenUp, int]]:
    """The first job of each route, and the number of its jobs."""
    firsts: dict[tuple[str, str], GivenUp] = {}
    counts: dict[tuple[str, str], int] = {}
    for one in given_up:
        key = (one.job.tenant_id, one.job.route_id)
        firsts.setdefault(key, one)
        counts[key] = counts.get(key, 0) + 1
    return [(firsts[key], counts[key]) for key in sorted(firsts)]


def make_notice(
    given_up: GivenUp, last: LastAttempt | None, *, count: int, now: datetime
) -> Notice:
    """The notice about a job; those of its route in the same hour only count.

    The reason of a dead letter may be an exception's text, which is not for tenants: they get the
    codes, and the message itself.
    """
    job = given_up.job
    data: dict[str, Any] = {
        "route_id": job.route_id,
        "job_id": job.job_id,
        "code": given_up.code,
        "device_id": job.device_id,
        "topic": job.topic,
    }
    if last is not None:
        data |= {
            "attempts": last.attempts,
            "last_error_code": last.error_code,
            "last_status_code": last.status_code,
        }
    payload = without_device_secret(job.payload)
    if _size_bytes(payload) <= _MAX_PAYLOAD_BYTES:
        data["payload"] = payload
    key = f"{job.route_id}/given_up/{now:%Y-%m-%dT%H}"
    # A notice about a notice would beget others.
    is_routed = not is_notice_topic(job.topic)
    return Notice(job.tenant_id, "job_given_up", key, data, is_routed, count)


def _size_bytes(payload: object) -> float:
    """The size as JSON; infinite for what JSON, or a jsonb column, does not have."""
    try:
        text = orjson.dumps(payload)
    except (TypeError, ValueError):
        return float("inf")
    return float("inf") if b"\\u0000" in text else len(text)


__all__ = ["GivenUp", "LastAttempt", "first_of_routes", "make_notice"]
