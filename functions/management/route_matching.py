"""An endpoint that says which routes a message would take, and why the others do not take it.

Nothing is stored or sent, and the message's device need not exist.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import orjson
from pydantic import BaseModel, Field, ValidationError

from functions.domain.delivery_options import DeliveryOptions, OrderKey
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.evaluation.values import Ask
from functions.domain.event_bodies import written
from functions.domain.expressions import variables_of
from functions.domain.identifiers import DeviceId
from functions.domain.named_sql import read_queries
from functions.domain.paging import Cursor, Page, as_text, cut, read_cursor
from functions.domain.route_decisions import TAKEN, Decision, decide, job_subject, steps_of
from functions.domain.topic_filters import topic_matches
from functions.domain.topics import BadTopic, parse_topic
from functions.domain.transformations import TransformationFailed, Transformer
from functions.domain.values import JsonObject, ShortText, Time
from functions.management.destination_types import KnownType, find_types
from functions.management.requests import Request, TenantRequest
from functions.management.stored_destinations import NOT_DELIVERED
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("route_matching.sql"))
_TOKEN = "provision_token"  # noqa: S105 - a field's name


class SampleMessage(Request):
    """A message of a device, as `tenant/{tenant_id}/device/{device_id}/{msg_type}` brings it."""

    payload: JsonObject
    device_id: DeviceId = "device"
    msg_type: ShortText = "telemetry"
    stored_at: Time | None = None


class MatchRoutes(TenantRequest):
    """A message to test the routes of a tenant with, and which page of them is wanted."""

    message: SampleMessage
    limit: Annotated[int, Field(ge=1, le=100)] = 100
    cursor: Cursor | None = None


class Why(BaseModel):
    """A reason for which a route does not take the message.

    Attributes:
        code: TOPIC_NOT_MATCHED, ROUTE_DISABLED, FILTER_FALSE, FIELD_MISSING, FILTER_FAILED,
            FILTER_STOPPED, FILTERS_OVER_BUDGET, FILTER_UNREADABLE or FILTERS_UNAVAILABLE.
        detail: what the engine says of a filter that fails, or the field that is missing.
    """

    code: str
    reason: str
    detail: str | None = None


class MatchedJob(BaseModel):
    """The job that the message would become.

    Attributes:
        subject: where it would be published.
        payload: after the route's transformation; null if that fails.
        error_code: TRANSFORMATION_FAILED or ROUTE_CONFIG_INVALID: the job would be refused.
        error_field: the field of the transformation that fails; empty for the whole.
    """

    subject: str
    payload: Any = None
    error_code: str | None = None
    error_field: str | None = None
    error_reason: str | None = None


class MatchedRoute(BaseModel):
    """What a route does with the message.

    Attributes:
        takes: whether it takes the message.
        reasons: all that speak against it; the filter of a route of other topics is not evaluated.
        notes: why the job would wait: ROUTE_PAUSED, DESTINATION_TYPE_NOT_DELIVERED.
    """

    route_id: UUID
    name: str
    destination_type: str
    topic_filter: str
    is_enabled: bool
    takes: bool
    reasons: list[Why]
    notes: list[Why]
    job: MatchedJob | None


@dataclass(frozen=True, slots=True)
class _Matched:
    """A row of a route, and what was found out about it."""

    row: asyncpg.Record
    order_key: OrderKey | None
    is_on_topic: bool
    decision: Decision

    @property
    def takes(self) -> bool:
        return self.is_on_topic and self.row["is_enabled"] and self.decision.verdict == "taken"


async def start(ctx: Context) -> Evaluator:
    """What evaluates filters, order keys and transformations."""
    return Evaluator(ctx.log)


async def stop(ctx: Context) -> None:
    """End its process."""
    await ctx.state.close()


async def match_routes(event: Event[MatchRoutes], ctx: Context) -> Page[MatchedRoute]:
    """Which routes a message would take, in the order of their names, and why the others not."""
    query = event.data
    variables = _variables(query)
    (after,) = read_cursor(query.cursor, as_text)
    rows = await ctx.postgres.fetch(_QUERIES["routes"], query.tenant_id, after, query.limit + 1)
    tested = await _test(ctx.state, query, variables, rows)
    types = await find_types(ctx.postgres, [row["destination_type"] for row in rows])
    jobs = await asyncio.gather(
        *(_job(ctx.state, query, variables, each) if each.takes else _no_job() for each in tested)
    )
    items = [
        _shown(each, types.get(each.row["destination_type"]), job)
        for each, job in zip(tested, jobs, strict=True)
    ]
    return cut(items, query.limit, lambda route: (route.name,))


def _variables(query: MatchRoutes) -> dict[str, Any]:
    message = query.message
    text = f"tenant/{query.tenant_id}/device/{message.device_id}/{message.msg_type}"
    topic = parse_topic(text)
    if isinstance(topic, BadTopic):
        text = f"No device sends such a message: {topic.reason}."
        raise Reject("BAD_TOPIC_FORMAT", text, status=422)
    if topic.family != "telemetry":
        raise Reject("MESSAGE_NOT_ROUTED", "Routes take telemetry alone.", status=422)
    payload = {key: value for key, value in message.payload.items() if key != _TOKEN}
    variables = variables_of(
        payload,
        topic=text,
        tenant_id=query.tenant_id,
        device_id=message.device_id,
        msg_type=message.msg_type,
    )
    stored_at = written(message.stored_at) if message.stored_at else "2026-08-01T12:00:00.000000Z"
    return {**variables, "stored_at": stored_at, "job_id": "TELEMETRY-1-1-test"}


async def _test(
    evaluator: Evaluator,
    query: MatchRoutes,
    variables: dict[str, Any],
    rows: Sequence[asyncpg.Record],
) -> list[_Matched]:
    on_topic = [topic_matches(row["topic_filter"], variables["topic"]) for row in rows]
    keys = [OrderKey(row["order_by"], str(row["id"])) if row["order_by"] else None for row in rows]
    steps = [
        steps_of(row["payload_filter"], key) if matches else ()
        for row, key, matches in zip(rows, keys, on_topic, strict=True)
    ]
    size_bytes = len(orjson.dumps(variables["payload"]))
    asks = [Ask(query.tenant_id, variables, each, size_bytes) for each in steps if each]
    answers = iter(await evaluator.evaluate(asks))
    decisions = [decide(each, next(answers)) if each else TAKEN for each in steps]
    found = zip(rows, keys, on_topic, decisions, strict=True)
    return [_Matched(row, key, matches, decision) for row, key, matches, decision in found]


async def _job(
    evaluator: Evaluator, query: MatchRoutes, variables: dict[str, Any], tested: _Matched
) -> MatchedJob:
    row = tested.row
    kind, key = row["destination_type"], tested.decision.key
    subject = job_subject(query.tenant_id, kind, tested.order_key, variables, key)
    try:
        options = DeliveryOptions.model_validate_json(row["delivery_options"])
    except ValidationError:
        reason = "the route's delivery options cannot be read"
        return MatchedJob(subject=subject, error_code="ROUTE_CONFIG_INVALID", error_reason=reason)
    if options.transformation is None:
        return MatchedJob(subject=subject, payload=variables["payload"])
    transformer = Transformer(options.transformation)
    try:
        payload = await transformer.apply(evaluator, query.tenant_id, variables)
    except TransformationFailed as failed:
        return MatchedJob(
            subject=subject,
            error_code="TRANSFORMATION_FAILED",
            error_field=failed.field,
            error_reason=str(failed),
        )
    return MatchedJob(subject=subject, payload=payload)


async def _no_job() -> None:
    return None


def _shown(tested: _Matched, known: KnownType | None, job: MatchedJob | None) -> MatchedRoute:
    row, decision = tested.row, tested.decision
    reasons, notes = [], []
    if not tested.is_on_topic:
        reason = "the topic filter does not match the message's topic"
        reasons.append(Why(code="TOPIC_NOT_MATCHED", reason=reason))
    if not row["is_enabled"]:
        reasons.append(Why(code="ROUTE_DISABLED", reason="the route is disabled"))
    if decision.code is not None:
        detail = decision.detail or None
        reasons.append(Why(code=decision.code, reason=decision.reason, detail=detail))
    if row["paused_at"] is not None:
        reason = "the route is paused, and its jobs wait until it is resumed"
        notes.append(Why(code="ROUTE_PAUSED", reason=reason))
    if not (known and known.is_delivered):
        notes.append(Why(code="DESTINATION_TYPE_NOT_DELIVERED", reason=NOT_DELIVERED))
    return MatchedRoute(
        route_id=row["id"],
        name=row["name"],
        destination_type=row["destination_type"],
        topic_filter=row["topic_filter"],
        is_enabled=row["is_enabled"],
        takes=tested.takes,
        reasons=reasons,
        notes=notes,
        job=job,
    )


__all__ = ["match_routes", "start", "stop"]
