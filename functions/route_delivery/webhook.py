"""Delivers jobs to webhooks, signed as Standard Webhooks specifies."""

import asyncio
import json
import ssl
import time
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from functions.route_delivery.addresses import AddressPolicy, parse_networks
from functions.route_delivery.breaker import Breaker
from functions.route_delivery.delivery import Destination, Receipt, deliver
from functions.route_delivery.endpoint import (
    Endpoint,
    WebhookDestination,
    is_overloaded,
    judge,
    prepare,
)
from functions.route_delivery.job import Job, without_device_secret
from functions.route_delivery.signature import sign
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
        allowed_networks: networks allowed beside the public ones, such as `10.0.0.0/8, fd00::/8`.
        nameservers: name servers in place of the system's, such as `10.0.0.2, 10.0.0.3:5353`.
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
    nameservers: str = ""
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
    """Sends jobs to their endpoints, with a circuit breaker per route.

    Args:
        settings: the function's.
        tls: trusts the authorities of the endpoints' certificates.
    """

    def __init__(self, settings: WebhookSettings, tls: ssl.SSLContext) -> None:
        self._retry_after_cap_s = settings.retry_after_cap_s
        self._pause_s = settings.breaker_pause_s
        self._breaker = Breaker(failures=settings.breaker_failures, pause_s=self._pause_s)
        self._tls = tls
        self._endpoints: dict[str, Endpoint] = {}
        self._client = HttpClient(
            AddressPolicy(parse_networks(settings.allowed_networks)),
            timeout_s=settings.timeout_s,
            excerpt_bytes=settings.excerpt_bytes,
            nameservers=settings.nameservers.replace(",", " ").split(),
        )

    async def send(self, job: Job, destination: Destination) -> Receipt:
        """Make one attempt. Does not connect to an endpoint that is paused."""
        key = f"{job.tenant_id}/{job.route_id}"
        try:
            body = encode_body(job)
        except ValueError:
            return Receipt("refused", "PAYLOAD_NOT_JSON", "the payload cannot be written as JSON")
        try:
            endpoint = self._endpoint(destination.config)
            signature = sign(
                endpoint.secret, message_id=job.job_id, sent_at=datetime.now(UTC), body=body
            )
        except ValueError:
            return Receipt(
                "refused",
                "ROUTE_CONFIG_INVALID",
                "the route's URL, secret or headers are not usable",
            )
        if wait_s := self._breaker.wait_s(key, time.monotonic()):
            return Receipt(
                "skipped",
                "ENDPOINT_PAUSED",
                "the endpoint failed repeatedly and is paused for a while",
                # One pause more than necessary: after the pause, one job probes the endpoint first.
                # The wait is also long enough for the host to park the job, so that it uses no
                # concurrency: before, 1,000 jobs for a dead endpoint delayed a live one by 30 s.
                retry_after_s=wait_s + self._pause_s,
            )
        return await self._post(key, endpoint, encode_request(endpoint.head, signature, body))

    async def _post(self, key: str, endpoint: Endpoint, request: bytes) -> Receipt:
        try:
            answer = await self._client.send(endpoint.origin, request)
        except DestinationRefused:
            return Receipt(
                "refused", "DESTINATION_NOT_ALLOWED", "the URL leads to no allowed address"
            )
        except Fault as fault:
            self._breaker.failed(key, time.monotonic())
            return Receipt("failed", fault.code, fault.reason)
        if is_overloaded(answer):
            self._breaker.failed(key, time.monotonic())
        else:
            self._breaker.answered(key)
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


def encode_request(head: bytes, headers: dict[str, str], body: str) -> bytes:
    """The bytes of a request.

    Args:
        head: request line and headers that are the same in every request.
        headers: this request's; the length is added.
        body: the body.
    """
    content = body.encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (
        head,
        lines.encode("ascii"),
        len(content),
        content,
    )


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
    # Loading the authorities takes 20 ms and reads files.
    tls = await asyncio.to_thread(ssl.create_default_context)
    return Sender(ctx.settings, tls)


async def stop(ctx: Context[Sender]) -> None:
    """Close the sender."""
    await ctx.state.aclose()


async def deliver_webhook(event: Event[Job], ctx: Context[Sender]) -> None:
    """POST one job to the endpoint of its route."""
    await deliver(event, ctx, ctx.state.send, destination_type="webhook")
