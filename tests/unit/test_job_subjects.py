"""The subject of a job says whether, and after which jobs, it is delivered in order."""

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import structlog

from functions.domain.delivery_options import OrderKey, token_of
from functions.domain.envelope import Envelope
from functions.domain.registry import RegisteredRoute, TenantRoutes
from functions.ingest.jobs import Candidate, JobMaker
from functions.ingest.plan import read_telemetry, stored_at
from runtime import Message
from tests.support.evaluation import EvaluatorHere


def subjects(routes: Sequence[RegisteredRoute], device_id: str, **payload: Any) -> list[str]:
    message = Message(
        f"telemetry.t.{device_id}", orjson.dumps(payload), stream="TELEMETRY", sequence=1
    )
    envelope = read_telemetry(message)
    assert isinstance(envelope, Envelope)
    maker = JobMaker(structlog.stdlib.get_logger(), EvaluatorHere())
    matching = TenantRoutes(list(routes)).on(envelope.topic)
    made = asyncio.run(maker.make([Candidate(message, envelope, stored_at(message), matching)]))
    assert not made.failed
    return [str(job.subject) for _, job in made.jobs]


def test_a_job_of_a_route_with_an_order_has_the_token_of_its_key() -> None:
    routes = [
        RegisteredRoute("r1", "#", "webhook"),
        RegisteredRoute("r2", "#", "webhook", order_key=OrderKey("device_id", "r2")),
        RegisteredRoute("r3", "#", "slack", order_key=OrderKey("payload.line", "r3")),
    ]
    assert subjects(routes, "d1", line=7) == [
        "routes.t.webhook",
        f"routes.t.webhook.{token_of('r2', 'd1')}",
        f"routes.t.slack.{token_of('r3', '7')}",
    ]
    # What lacks the key shares one.
    assert subjects(routes, "d2")[2] == f"routes.t.slack.{token_of('r3', '')}"
