"""Posts jobs as messages to Slack's incoming webhooks, and to services that take the same form.

Source: Slack, "Sending messages using incoming webhooks": a JSON object with `text`; the answer is
200 with `ok`, or an error's name as text.
"""

import json
import re
import ssl
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from functions.domain.destination_annotations import Format
from functions.domain.retry_after import parse_retry_after
from functions.domain.webhooks import check_url
from functions.outbound.endpoint import excerpt_of
from functions.outbound.receipt import EndpointHealth, Receipt
from functions.outbound.transport.client import HttpClient
from functions.outbound.transport.connection import BODY_S, Answer
from functions.outbound.transport.faults import DestinationRefused, Fault
from functions.outbound.transport.requests import encode_request, target_of
from functions.route_delivery.connected_sender import sender_hooks
from functions.route_delivery.deliverer import deliverer
from functions.route_delivery.destinations import EndpointKey
from functions.route_delivery.guarded import GuardedSettings, fingerprint, receipt_of
from functions.route_delivery.job import Job
from functions.route_delivery.templates import TemplateText, render
from runtime import Context

# Slack cuts longer texts.
MAX_TEXT_CHARACTERS = 4000

_URL = r"^https?://[\x21-\x7e]+$"
_OVERTIME_S = BODY_S + 3.0
_HEADERS = {"content-type": "application/json", "user-agent": "nats-function-runtime"}
# What another attempt would not change: the webhook or its channel is gone, or the text is refused.
_GONE = frozenset(
    {"no_service", "no_service_id", "no_team", "team_disabled", "channel_is_archived"}
)
_UNACCEPTABLE = frozenset({"invalid_payload", "no_text", "msg_too_long"})
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_GONE_STATUS = 410
_TOO_MANY, _SERVER_ERRORS = 429, 500


class Settings(GuardedSettings):
    """Settings of the delivery to Slack."""


def _check_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    if not re.fullmatch(_URL, text):
        raise ValueError("the URL must begin with http:// or https:// and have no blank")
    check_url(text)
    return url


class Destination(BaseModel):
    """The `destination_config` of a route of type `slack`.

    Attributes:
        url: the incoming webhook's; a secret, since whoever knows it can post.
        text: the message; Slack's own marks work in it, and not in a device's values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: Annotated[
        SecretStr,
        Field(
            min_length=8,
            max_length=2048,
            json_schema_extra={"pattern": _URL},
        ),
        AfterValidator(_check_url),
        Format("http-url"),
    ]
    text: TemplateText = "{device_id} {msg_type}: {payload}"


def endpoint_of(destination: Destination) -> EndpointKey:
    """The endpoint is the URL, not shown; its origin is the URL's scheme, host and port."""
    url = destination.url.get_secret_value()
    scheme, _, rest = url.partition("://")
    origin = f"{scheme}://{rest.partition('/')[0].lower()}"
    return EndpointKey(f"{origin}/#{fingerprint(url)}", origin)


class Sender:
    """Posts messages.

    Args:
        settings: the function's.
        tls: trusts the authorities of the endpoints' certificates.
    """

    def __init__(self, settings: Settings, tls: ssl.SSLContext) -> None:
        self._retry_after_cap_s = settings.retry_after_cap_s
        self._tls = tls
        self._client = HttpClient(
            settings.policy,
            timeout_s=settings.timeout_s,
            excerpt_bytes=settings.excerpt_bytes,
            nameservers=settings.nameserver_list,
        )

    async def post(self, url: str, text: str) -> Receipt:
        """Post one message."""
        target = target_of(url, self._tls)
        body = json.dumps({"text": text}, ensure_ascii=False).encode()
        request = encode_request("POST", target, _HEADERS, body)
        try:
            answer = await self._client.send(target.origin, request)
        except (DestinationRefused, Fault) as fault:
            return receipt_of(fault)
        return judge(answer, now=datetime.now(UTC), retry_after_cap_s=self._retry_after_cap_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def judge(answer: Answer, *, now: datetime, retry_after_cap_s: float) -> Receipt:
    """The result that Slack's answer stands for."""
    status, excerpt = answer.status, excerpt_of(answer)
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's classes
        return Receipt("delivered", status_code=status, excerpt=excerpt)
    said = excerpt.strip()
    if status == _GONE_STATUS or said in _GONE:
        reason = "Slack has no such webhook or channel any more, so its route is disabled"
        return Receipt("refused", "ENDPOINT_GONE", reason, status, excerpt, disables_route=True)
    if said in _UNACCEPTABLE:
        return Receipt(
            "refused", "MESSAGE_NOT_ACCEPTED", "Slack does not accept the text", status, excerpt
        )
    wait_s = parse_retry_after(answer.headers.get("retry-after"), now=now)
    health: EndpointHealth = "failed" if status >= _SERVER_ERRORS else "answered"
    return Receipt(
        "failed",
        f"HTTP_{status}",
        f"Slack answered {status}",
        status,
        excerpt,
        retry_after_s=None if wait_s is None else min(wait_s, retry_after_cap_s),
        health="throttled" if status == _TOO_MANY else health,
    )


def escape(value: str) -> str:
    """A value that mentions nobody and links nowhere, whatever a device wrote into it."""
    return value.translate(_ESCAPES)


async def send(job: Job, destination: Destination, ctx: Context[Sender]) -> Receipt:
    """Post one job's message."""
    text = render(destination.text, job, escape=escape, max_characters=MAX_TEXT_CHARACTERS)
    # Slack refuses an empty text, which a template of absent values makes.
    return await ctx.state.post(destination.url.get_secret_value(), text.strip() or "(no text)")


_open, _close = sender_hooks(Sender)


deliver, start, stop = deliverer(
    "slack",
    Destination,
    send,
    endpoint=endpoint_of,
    start=_open,
    stop=_close,
    overtime_s=_OVERTIME_S,
)
