"""Makes the functions of a route type: what the manifest's handler and the host's hooks need."""

import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from functions.domain.destination_schemas import check_schema
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.secret_box import SecretBox
from functions.outbound.admission import Admission, Limits
from functions.outbound.settings import DeliverySettings
from functions.route_delivery.announcement import Announcement, check_keys
from functions.route_delivery.delivery import Delivery, Send
from functions.route_delivery.destinations import DestinationReader, EndpointKey
from functions.route_delivery.job import Job
from functions.route_delivery.journal import Journal
from functions.route_delivery.letter_share import LetterShare
from runtime import ConfigError, Context, Event, Problem

D = TypeVar("D", bound=BaseModel)

_NAME = re.compile(r"[a-z0-9_]{1,32}")


class Deliverer(NamedTuple):
    """The functions of a route type's module.

    Attributes:
        deliver: the manifest's handler.
        start: the host calls it before the first job.
        stop: the host calls it after the last one.
    """

    deliver: Callable[[Event[Job], Context[Any]], Awaitable[None]]
    start: Callable[[Context[Any]], Awaitable[Any]]
    stop: Callable[[Context[Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Started(Generic[D]):
    """The `ctx.state` of a deliverer."""

    delivery: Delivery[D]
    announcement: Announcement


def deliverer(
    destination_type: str,
    destination: type[D],
    send: Send[D],
    *,
    endpoint: Callable[[D], EndpointKey] | None = None,
    start: Callable[[Context[Any]], Awaitable[Any]] | None = None,
    stop: Callable[[Context[Any]], Awaitable[None]] | None = None,
    overtime_s: float | None = 0.0,
) -> Deliverer:
    """The functions of a route type, for its module to export.

    A module says `deliver, start, stop = deliverer("slack", Destination, send)`, and its manifest's
    handler is `deliver`. Its `Settings`, if it has any, extend `DeliverySettings`.

    Args:
        destination_type: the type's name, which is the last token of its jobs' subject.
        destination: the model of a route's `destination_config`.
        send: makes one attempt. An exception is a failed attempt, which is logged with its type,
            text and line; the tenant sees only `SEND_FAILED`. `Retry` and `Reject` work as in every
            function, but a `delay_s` that is shorter than the schedule's delay has no effect.
        endpoint: which endpoint a destination leads to; a pure function. By default an endpoint is
            a configuration, and has no origin.
        start: makes what all attempts share, and `send` finds as `ctx.state`.
        stop: closes it.
        overtime_s: how long `send` may exceed its time limit, when it keeps to it by itself. The
            limit is the route's or the settings' `timeout_s`; `ctx.remaining_s` says what is left.
            None if each of its waits ends by itself: a timer costs a twentieth of a delivery.

    Raises:
        TypeError: `send` is no `async def`.
        ValueError: the name or the schema of the type cannot be used.
    """
    if not inspect.iscoroutinefunction(send):
        raise TypeError(f"send of the route type {destination_type} must be an `async def`")
    schema = _schema_of(destination_type, destination)
    begin, end = start, stop

    async def deliver(event: Event[Job], ctx: Context[Any]) -> None:
        """Deliver one job: look up its route, make one attempt, log it, and settle the job."""
        started: Started[D] = ctx.state
        await started.delivery.deliver(event, ctx)

    async def start_delivery(ctx: Context[Any]) -> Started[D]:
        """Make what all deliveries share."""
        settings = _settings_of(ctx)
        box = SecretBox.of(settings.secrets_keys)
        await check_keys(ctx, destination_type, box)
        announcement = Announcement(ctx.postgres, destination_type, schema, ctx.log)
        state = await begin(ctx) if begin else None
        delivery = Delivery(
            destination_type,
            send,
            settings,
            overtime_s,
            DestinationReader(destination, endpoint, box),
            Journal(ctx.postgres),
            Admission(_limits_of(settings)),
            Evaluator(ctx.log),
            state,
            LetterShare(ctx.postgres, settings.max_given_up_bytes, ctx.log),
        )
        # The last step: what is announced can be delivered.
        await announcement.start()
        return Started(delivery, announcement)

    async def stop_delivery(ctx: Context[Any]) -> None:
        """Write the last attempts, and close what the type opened."""
        started: Started[D] = ctx.state
        await started.announcement.stop()
        await started.delivery.journal.close()
        await started.delivery.evaluator.close()
        if end:
            await end(ctx.with_state(started.delivery.state))

    # The host and the test kit look beside a handler for its module's hooks and settings.
    deliver.__module__ = start_delivery.__module__ = stop_delivery.__module__ = send.__module__
    return Deliverer(deliver, start_delivery, stop_delivery)


def _schema_of(destination_type: str, destination: type[BaseModel]) -> dict[str, Any]:
    if not _NAME.fullmatch(destination_type):
        raise ValueError(
            f"the route type {destination_type[:40]!r} must have 1 to 32 characters a-z, 0-9 and _"
        )
    schema = destination.model_json_schema()
    try:
        check_schema(schema)
    except ValueError as misfit:
        raise ValueError(
            f"the Destination of the route type {destination_type}: {misfit}"
        ) from None
    return schema


def _settings_of(ctx: Context[Any]) -> DeliverySettings:
    if ctx.settings is None:
        return DeliverySettings()
    if not isinstance(ctx.settings, DeliverySettings):
        raise ConfigError(
            [
                Problem(
                    where=f"function {ctx.function}",
                    field="settings",
                    wrong="the module's Settings lack those of every route type",
                    remedy="write `class Settings(DeliverySettings):`",
                )
            ]
        )
    return ctx.settings


def _limits_of(settings: DeliverySettings) -> Limits:
    return Limits(
        of_endpoint=settings.per_endpoint,
        of_origin=settings.per_origin,
        pause_s=settings.breaker_pause_s,
        calls=settings.breaker_calls,
        ratio=settings.breaker_ratio,
        window_s=settings.breaker_window_s,
    )


__all__ = ["Deliverer", "deliverer"]
