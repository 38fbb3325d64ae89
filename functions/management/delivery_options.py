"""Endpoints for what a route says of its delivery, and for a preview of what it sends."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from pydantic import BaseModel, ValidationError

from functions.domain.delivery_options import DeliveryOptions, OrderKey, OrderKeyText
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.evaluation.values import Ask
from functions.domain.event_bodies import event_body, event_type, written
from functions.domain.expressions import variables_of
from functions.domain.identifiers import DeviceId
from functions.domain.named_sql import read_queries
from functions.domain.route_decisions import decide, steps_of
from functions.domain.transformations import Transformation, TransformationFailed, Transformer
from functions.domain.values import JsonObject, ShortText, Time
from functions.management.requests import Request, TenantRequest
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("delivery_options.sql"))
_PLACE = re.compile(r"line (\d+), column (\d+)")
_TYPES_WITH_A_BODY = frozenset({"webhook", "poll"})


class OptionsRequest(TenantRequest):
    """A request about the delivery options of one route."""

    route_id: UUID


class SetOptions(OptionsRequest, DeliveryOptions):
    """The delivery options of a route; what is absent is as its type's manifest says.

    `order_by` is a CEL expression over the message, such as `device_id` or `payload.customer.id`:
    jobs for which it has the same value are delivered one after the other, in order.
    """

    order_by: OrderKeyText | None = None


class Options(DeliveryOptions):
    """The delivery options of a route."""

    route_id: UUID
    tenant_id: str
    order_by: str | None


class Sample(Request):
    """A message of a device."""

    payload: JsonObject
    device_id: DeviceId = "device"
    msg_type: ShortText = "telemetry"
    stored_at: Time | None = None


class Preview(TenantRequest):
    """A sample message, and a route or a transformation. A given transformation is the one used."""

    message: Sample
    route_id: UUID | None = None
    transformation: JsonObject | None = None


class PreviewError(BaseModel):
    """Why nothing would be sent.

    Attributes:
        code: TRANSFORMATION_INVALID: it would not be stored. TRANSFORMATION_FAILED: a job of this
            message would be refused.
        field: the field of the transformation; empty for the whole.
        line: of the fault in the field's expression, if it has a place.
        column: as `line`.
    """

    code: str
    field: str = ""
    reason: str
    line: int | None = None
    column: int | None = None


class Previewed(BaseModel):
    """What a route would send.

    Attributes:
        payload: the payload, after the transformation.
        body: all of it, for a type that sends a document: webhook and poll.
        order_key: the token of the message's order key; messages with the same token are in order.
    """

    payload: Any = None
    body: Any = None
    order_key: str | None = None
    error: PreviewError | None = None


async def start(ctx: Context) -> Evaluator:
    """What evaluates transformations and order keys."""
    return Evaluator(ctx.log)


async def stop(ctx: Context) -> None:
    """End its process."""
    await ctx.state.close()


async def get_delivery_options(event: Event[OptionsRequest], ctx: Context) -> Options:
    """The delivery options of a route."""
    wanted = event.data
    row = await _find(ctx, wanted.tenant_id, wanted.route_id)
    return _options(wanted, row["order_by"], orjson.loads(row["delivery_options"]))


async def set_delivery_options(event: Event[SetOptions], ctx: Context) -> Options:
    """Replace the delivery options of a route. They hold for the attempts after this one.

    The order holds for the jobs that are made after the change.
    """
    wanted = event.data
    row = await _find(ctx, wanted.tenant_id, wanted.route_id)
    if wanted.order_by and not row["order_by"]:
        await _require_order(ctx, row["destination_type"])
    fields = set(DeliveryOptions.model_fields)
    stored = wanted.model_dump(mode="json", include=fields, exclude_none=True)
    found = await ctx.postgres.fetchval(
        _QUERIES["set"],
        *(wanted.tenant_id, wanted.route_id, wanted.order_by, orjson.dumps(stored).decode()),
    )
    if found is None:
        raise _not_found()
    return _options(wanted, wanted.order_by, stored)


async def preview_delivery(event: Event[Preview], ctx: Context) -> Previewed:
    """What a route would send for a message, or why it would send nothing."""
    wanted, order_by, kind = event.data, None, "webhook"
    given: Any = wanted.transformation
    if wanted.route_id is not None:
        row = await _find(ctx, wanted.tenant_id, wanted.route_id)
        order_by, kind = row["order_by"], row["destination_type"]
        given = given or orjson.loads(row["delivery_options"]).get("transformation")
    variables = _variables(wanted)
    try:
        transformer = Transformer(Transformation.model_validate(given)) if given else None
        payload: Any = wanted.message.payload
        if transformer is not None:
            payload = await transformer.apply(ctx.state, wanted.tenant_id, variables)
    except ValidationError as misfit:
        return Previewed(error=_error_of(misfit))
    except TransformationFailed as failed:
        reason = str(failed)
        return Previewed(
            error=PreviewError(code="TRANSFORMATION_FAILED", field=failed.field, reason=reason)
        )
    is_whole = transformer is not None and transformer.replaces == "body"
    body = payload if is_whole else _body(wanted, variables, payload)
    return Previewed(
        payload=payload,
        body=body if kind in _TYPES_WITH_A_BODY else None,
        order_key=await _order_key(ctx, wanted, order_by, variables),
    )


async def _order_key(
    ctx: Context, wanted: Preview, order_by: str | None, variables: dict[str, Any]
) -> str | None:
    if not order_by:
        return None
    key = OrderKey(order_by, str(wanted.route_id))
    evaluated = ""
    if steps := steps_of(None, key):
        [answer] = await ctx.state.evaluate([Ask(wanted.tenant_id, variables, steps)])
        evaluated = decide(steps, answer).key
    return key.token(variables, evaluated)


async def _find(ctx: Context, tenant_id: str, route_id: UUID) -> asyncpg.Record:
    row = await ctx.postgres.fetchrow(_QUERIES["find"], tenant_id, route_id)
    if row is None:
        raise _not_found()
    return row


async def _require_order(ctx: Context, kind: str) -> None:
    """Require that a function delivers the type's jobs in order: that its consumer exists.

    Raises:
        Reject: `ORDER_NOT_SERVED`.
        Unavailable: JetStream does not answer.
    """
    wanted, at = f"routes.*.{kind}.*", 0
    while True:
        request = orjson.dumps({"offset": at})
        answer = await ctx.request("$JS.API.CONSUMER.LIST.ROUTES", request)
        page = orjson.loads(answer.data)
        consumers = page.get("consumers") or []
        for consumer in consumers:
            config = consumer["config"]
            filters = {config.get("filter_subject"), *(config.get("filter_subjects") or [])}
            if wanted in filters:
                return
        at += len(consumers)
        if not consumers or at >= page.get("total", 0):
            text = f"No function delivers {kind} in order; the manifests need an entry for it."
            raise Reject("ORDER_NOT_SERVED", text, status=422)


def _variables(wanted: Preview) -> dict[str, Any]:
    message = wanted.message
    of_message = variables_of(
        message.payload,
        topic=_topic(wanted),
        tenant_id=wanted.tenant_id,
        device_id=message.device_id,
        msg_type=message.msg_type,
    )
    stored_at = written(message.stored_at) if message.stored_at else "2026-08-01T12:00:00.000000Z"
    return {**of_message, "stored_at": stored_at, "job_id": "TELEMETRY-1-1-preview"}


def _topic(wanted: Preview) -> str:
    message = wanted.message
    return f"tenant/{wanted.tenant_id}/device/{message.device_id}/{message.msg_type}"


def _body(wanted: Preview, variables: dict[str, Any], payload: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    message = wanted.message
    return event_body(
        event_type(_topic(wanted), message.msg_type),
        datetime.fromisoformat(variables["stored_at"]),
        {
            "tenant_id": wanted.tenant_id,
            "device_id": message.device_id,
            "msg_type": message.msg_type,
            "topic": _topic(wanted),
            "payload": payload,
        },
    )


def _error_of(misfit: ValidationError) -> PreviewError:
    [first, *_] = misfit.errors(include_url=False, include_input=False, include_context=False)
    reason = first["msg"].removeprefix("Value error, ")
    place = _PLACE.search(reason)
    named = re.search(r"the field '([^']{1,128})' of", reason)
    return PreviewError(
        code="TRANSFORMATION_INVALID",
        field=named[1] if named else ".".join(str(part)[:64] for part in first["loc"]),
        reason=reason,
        line=int(place[1]) if place else None,
        column=int(place[2]) if place else None,
    )


def _options(wanted: OptionsRequest, order_by: str | None, stored: dict[str, Any]) -> Options:
    return Options(
        route_id=wanted.route_id, tenant_id=wanted.tenant_id, order_by=order_by, **stored
    )


def _not_found() -> Reject:
    return Reject("ROUTE_NOT_FOUND", "The tenant has no such route.", status=404)
