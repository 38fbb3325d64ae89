"""Delivers jobs to webhooks, signed as Standard Webhooks specifies."""

import asyncio
import json
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from functions.route_delivery.addresses import AddressPolicy, parse_networks
from functions.route_delivery.admission import Admission, Limits
from functions.route_delivery.delivery import Destination, Receipt, deliver
from functions.route_delivery.endpoint import (
    Endpoint,
    WebhookDestination,
    judge,
    prepare,
    result_of,
)
from functions.route_delivery.job import Job, without_device_secret
from functions.route_delivery.journal import Journal
from functions.route_delivery.pace import Result
from functions.route_delivery.transport.client import HttpClient
from functions.route_delivery.transport.faults import DestinationRefused, Fault
from runtime import Context, Event

USER_AGENT = "nats-function-runtime"
_MAX_ENDPOINTS = 10_000


class WebhookSettings(BaseModel):
    """Settings of webhook delivery.

    Attributes:
        timeout_s: time limit until the answer's status; name resolution, connection and TLS
            included.
        allowed_networks: networks allowed beside the public ones: `10.0.0.0/8, 127.0.0.1:8090`.
        nameservers: name servers in place of the system's, such as `10.0.0.2, 10.0.0.3:5353`.
        excerpt_bytes: how much of an answer's body the attempt log keeps.
        retry_after_cap_s: the longest wait that an endpoint may ask for.
        per_endpoint: most requests at a time to one endpoint (tenant and URL).
        per_origin: most requests at a time to one origin (scheme, host and port).
        breaker_calls: number of calls from which on an endpoint may be paused.
        breaker_ratio: the share of failures within `breaker_window_s` that pauses it.
        breaker_window_s: how long a call counts.
        breaker_pause_s: length of the pause, before one delivery probes the endpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: Annotated[float, Field(gt=0, le=120)] = 15.0
    allowed_networks: str = ""
    nameservers: str = ""
    excerpt_bytes: Annotated[int, Field(ge=0, le=65_536)] = 16_384
    retry_after_cap_s: Annotated[float, Field(ge=1, le=86_400)] = 3600.0
    per_endpoint: Annotated[int, Field(ge=1, le=1000)] = 32
    per_origin: Annotated[int, Field(ge=1, le=10_000)] = 256
    breaker_calls: Annotated[int, Field(ge=1, le=10_000)] = 10
    breaker_ratio: Annotated[float, Field(gt=0, le=1)] = 0.7
    breaker_window_s: Annotated[float, Field(ge=10, le=3600)] = 300.0
    breaker_pause_s: Annotated[float, Field(gt=0, le=3600)] = 30.0

    @field_validator("allowed_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        parse_networks(text)
        return text


# The name under which the host looks for a function's settings.
Settings = WebhookSettings


class Sender:
    """Sends jobs to their endpoints, bounded per endpoint and origin.

    Args:
        settings: the function's.
        tls: trusts the authorities of the endpoints' certificates.
    """

    def __init__(self, settings: WebhookSettings, tls: ssl.SSLContext) -> None:
        self._retry_after_cap_s = settings.retry_after_cap_s
        self._admission = Admission(
            Limits(
                of_endpoint=settings.per_endpoint,
                of_origin=settings.per_origin,
                pause_s=settings.breaker_pause_s,
                calls=settings.breaker_calls,
                ratio=settings.breaker_ratio,
                window_s=settings.breaker_window_s,
            )
        )
        self._tls = tls
        self._endpoints: dict[str, Endpoint] = {}
        self._client = HttpClient(
            AddressPolicy(parse_networks(settings.allowed_networks)),
            timeout_s=settings.timeout_s,
            excerpt_bytes=settings.excerpt_bytes,
            nameservers=settings.nameservers.replace(",", " ").split(),
        )

    async def send(self, job: Job, destination: Destination) -> Receipt:
        """Make one attempt, unless the endpoint is paused or has enough requests."""
        try:
            body = encode_body(job)
        except ValueError:
            return Receipt("refused", "PAYLOAD_NOT_JSON", "the payload cannot be written as JSON")
        try:
            endpoint = self._endpoint(destination.config)
        except ValueError:
            return Receipt(
                "refused",
                "ROUTE_CONFIG_INVALID",
                "the route's URL, secret or headers are not usable",
            )
        key = (job.tenant_id, endpoint.url)
        if refusal := await self._admission.enter(key, endpoint.origin):
            return Receipt("skipped", refusal.code, refusal.reason, retry_after_s=refusal.wait_s)
        return await self._post(key, endpoint, encode_request(endpoint, job.job_id, body))

    async def _post(self, key: tuple[str, str], endpoint: Endpoint, request: bytes) -> Receipt:
        result: Result | None = None
        connected: bool | None = None
        try:
            answer = await self._client.send(endpoint.origin, request)
            result, connected = result_of(answer), True
        except DestinationRefused:
            return Receipt(
                "refused", "DESTINATION_NOT_ALLOWED", "the URL leads to no allowed address"
            )
        except Fault as fault:
            connected = not fault.is_of_origin
            result = "failed" if connected else None
            return Receipt("failed", fault.code, fault.reason)
        finally:
            self._admission.leave(key, endpoint.origin, result, connected=connected)
        return judge(answer, now=datetime.now(UTC), retry_after_cap_s=self._retry_after_cap_s)

    def _endpoint(self, config: str) -> Endpoint:
        endpoint = self._endpoints.get(config)
        if endpoint is None:
            webhook = WebhookDestination.model_validate_json(config)
            endpoint = prepare(webhook, user_agent=USER_AGENT, tls=self._tls)
            if len(self._endpoints) >= _MAX_ENDPOINTS:
                self._endpoints.clear()
            self._endpoints[config] = endpoint
        return endpoint

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


def encode_request(endpoint: Endpoint, message_id: str, body: bytes) -> bytes:
    """The bytes of a request, signed now."""
    signature = endpoint.signer.sign(message_id, int(time.time()), body)
    lines = "".join(f"{name}: {value}\r\n" for name, value in signature.items())
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (
        endpoint.head,
        lines.encode("ascii"),
        len(body),
        body,
    )


def encode_body(job: Job) -> bytes:
    """The body: type, time and data, as Standard Webhooks recommends; the same on every attempt.

    Raises:
        ValueError: the payload holds a value that JSON lacks: NaN, Infinity, a lone surrogate.
    """
    return json.dumps(
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
    ).encode()


@dataclass(frozen=True, slots=True)
class State:
    """What all deliveries share."""

    sender: Sender
    journal: Journal


async def start(ctx: Context[State]) -> State:
    """Make what all deliveries share."""
    # Loading the authorities takes 20 ms and reads files.
    tls = await asyncio.to_thread(ssl.create_default_context)
    return State(Sender(ctx.settings, tls), Journal(ctx.postgres))


async def stop(ctx: Context[State]) -> None:
    """Close the connections."""
    await ctx.state.journal.close()
    await ctx.state.sender.aclose()


async def deliver_webhook(event: Event[Job], ctx: Context[State]) -> None:
    """POST one job to the endpoint of its route."""
    state = ctx.state
    await deliver(event, ctx, state.journal, state.sender.send, destination_type="webhook")
