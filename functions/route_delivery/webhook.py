"""Delivers jobs to webhooks, signed as Standard Webhooks specifies."""

import json
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import httpcore
from pydantic import BaseModel, ConfigDict, Field, field_validator

from functions.route_delivery.addresses import AddressPolicy, parse_networks
from functions.route_delivery.breaker import Breaker
from functions.route_delivery.delivery import Destination, Receipt, deliver
from functions.route_delivery.endpoint import WebhookDestination, is_overloaded, judge
from functions.route_delivery.http import (
    DestinationRefused,
    NameNotResolved,
    WebhookClient,
)
from functions.route_delivery.job import Job, without_device_secret
from functions.route_delivery.signature import sign
from runtime import Context, Event

USER_AGENT = "nats-function-runtime"
FAULTS = (
    NameNotResolved,
    TimeoutError,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
)


class WebhookSettings(BaseModel):
    """Settings of webhook delivery.

    Attributes:
        timeout_s: time limit until the answer's status; name resolution, connection and TLS
            included.
        allowed_networks: networks allowed beside the public ones, such as `10.0.0.0/8, fd00::/8`.
        excerpt_bytes: how much of an answer's body the attempt log keeps.
        retry_after_cap_s: the longest wait that an endpoint may ask for.
        breaker_failures: number of consecutive failures after which an endpoint is paused.
        breaker_pause_s: length of the pause, before one delivery probes the endpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: Annotated[float, Field(gt=0, le=120)] = 15.0
    allowed_networks: str = ""
    excerpt_bytes: Annotated[int, Field(ge=0, le=65_536)] = 4096
    retry_after_cap_s: Annotated[float, Field(ge=1, le=86_400)] = 3600.0
    breaker_failures: Annotated[int, Field(ge=1, le=10_000)] = 10
    breaker_pause_s: Annotated[float, Field(gt=0, le=3600)] = 30.0

    @field_validator("allowed_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        parse_networks(text)
        return text


# The name under which the host looks for a function's settings.
Settings = WebhookSettings


class Sender:
    """Sends jobs to their endpoints, with a circuit breaker per route."""

    def __init__(self, settings: WebhookSettings, *, tls: ssl.SSLContext | None = None) -> None:
        self._retry_after_cap_s = settings.retry_after_cap_s
        self._pause_s = settings.breaker_pause_s
        self._breaker = Breaker(failures=settings.breaker_failures, pause_s=self._pause_s)
        self._client = WebhookClient(
            AddressPolicy(parse_networks(settings.allowed_networks)),
            timeout_s=settings.timeout_s,
            excerpt_bytes=settings.excerpt_bytes,
            tls=tls,
        )

    async def send(self, job: Job, destination: Destination) -> Receipt:
        """Make one attempt. Does not connect to an endpoint that is paused."""
        endpoint = f"{job.tenant_id}/{job.route_id}"
        sent_at = datetime.now(UTC)
        try:
            body = encode_body(job)
        except ValueError:
            return Receipt("refused", "PAYLOAD_NOT_JSON", "the payload cannot be written as JSON")
        try:
            webhook = WebhookDestination.model_validate_json(destination.config)
            secret = webhook.secret.get_secret_value()
            signature = sign(secret, message_id=job.job_id, sent_at=sent_at, body=body)
        except ValueError:
            return Receipt(
                "refused",
                "ROUTE_CONFIG_INVALID",
                "the route's URL, secret or headers are not usable",
            )
        if wait_s := self._breaker.wait_s(endpoint, time.monotonic()):
            return Receipt(
                "skipped",
                "ENDPOINT_PAUSED",
                "the endpoint failed repeatedly and is paused for a while",
                # One pause more than necessary: after the pause, one job probes the endpoint first.
                # The wait is also long enough for the host to park the job, so that it uses no
                # concurrency: before, 1,000 jobs for a dead endpoint delayed a live one by 30 s.
                retry_after_s=wait_s + self._pause_s,
            )
        fixed = {"content-type": "application/json", "user-agent": USER_AGENT}
        return await self._post(endpoint, webhook, fixed | webhook.extra_headers | signature, body)

    async def _post(
        self, endpoint: str, webhook: WebhookDestination, headers: dict[str, str], body: str
    ) -> Receipt:
        try:
            answer = await self._client.post(webhook.target, headers, body.encode())
        except DestinationRefused:
            return Receipt(
                "refused", "DESTINATION_NOT_ALLOWED", "the URL leads to no allowed address"
            )
        except FAULTS as fault:
            self._breaker.failed(endpoint, time.monotonic())
            code, reason = describe(fault)
            return Receipt("failed", code, reason)
        if is_overloaded(answer):
            self._breaker.failed(endpoint, time.monotonic())
        else:
            self._breaker.answered(endpoint)
        return judge(answer, now=datetime.now(UTC), retry_after_cap_s=self._retry_after_cap_s)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def describe(fault: BaseException) -> tuple[str, str]:
    """Reason code and sentence for an attempt without an answer; repeats no text of the fault."""
    if isinstance(fault, NameNotResolved):
        return "NAME_NOT_RESOLVED", "the endpoint's name has no address"
    if isinstance(fault, TimeoutError | httpcore.TimeoutException):
        return "TIMEOUT", "the endpoint did not answer in time"
    if any(isinstance(cause, ssl.SSLError) for cause in _causes(fault)):
        return "TLS_FAILED", "the endpoint's certificate or TLS version was not accepted"
    if isinstance(fault, httpcore.NetworkError):
        return "CONNECTION_FAILED", "the connection to the endpoint failed or was lost"
    return "PROTOCOL_ERROR", "the endpoint did not speak HTTP"


def _causes(fault: BaseException) -> Iterator[BaseException]:
    # Follow `__context__`: httpcore's pool re-raises with `from None`, which clears `__cause__`.
    cause = fault.__context__
    while cause is not None:
        yield cause
        cause = cause.__context__


def encode_body(job: Job) -> str:
    """The body: type, time and data, as Standard Webhooks recommends; the same on every attempt.

    Raises:
        ValueError: the payload holds a value that JSON lacks: NaN, Infinity, a lone surrogate.
    """
    body = json.dumps(
        {
            "type": f"device.{job.msg_type.replace('/', '.') or 'message'}",
            "timestamp": job.stored_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "data": {
                "tenant_id": job.tenant_id,
                "device_id": job.device_id,
                "msg_type": job.msg_type,
                "topic": job.topic,
                "payload": without_device_secret(job.payload),
            },
        },
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    body.encode()
    return body


async def start(ctx: Context[Sender]) -> Sender:
    """Make the sender that all deliveries share."""
    return Sender(ctx.settings)


async def stop(ctx: Context[Sender]) -> None:
    """Close the sender."""
    await ctx.state.aclose()


async def deliver_webhook(event: Event[Job], ctx: Context[Sender]) -> None:
    """POST one job to the endpoint of its route."""
    await deliver(event, ctx, ctx.state.send, destination_type="webhook")
