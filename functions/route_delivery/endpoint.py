"""A webhook route's configuration, and the result that an endpoint's answer stands for."""

import math
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated

import httpx
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, field_validator

from functions.domain.webhooks import MAX_HEADERS, HeaderName, HeaderValue, check_url
from functions.route_delivery.delivery import Receipt
from functions.route_delivery.pace import Result
from functions.route_delivery.signature import Signer
from functions.route_delivery.transport.connection import Answer
from functions.route_delivery.transport.connector import Origin

_GONE = 410
_THROTTLES = frozenset({429, 502, 504})


class PreviousSecret(BaseModel):
    """A secret that was replaced, and signs beside the new one for a while."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    secret: SecretStr
    until: AwareDatetime


class WebhookDestination(BaseModel):
    """The `destination_config` of a route of type `webhook`.

    Attributes:
        url: `http` or `https`; kept as a secret, since many services put a token into the path.
        secret: signs every delivery; `whsec_` and base64.
        previous_secrets: sign every delivery too, each until its time.
        signing_key: `whsk_` and base64; signs for receivers that have the public key.
        headers: additional headers, such as `Authorization`.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: SecretStr
    secret: SecretStr
    previous_secrets: tuple[PreviousSecret, ...] = ()
    signing_key: SecretStr | None = None
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=MAX_HEADERS)] = Field(
        default_factory=dict
    )

    @property
    def signer(self) -> Signer:
        """Signs with all keys.

        Raises:
            ValueError: a key is not usable.
        """
        previous = [
            (one.secret.get_secret_value(), one.until.timestamp()) for one in self.previous_secrets
        ]
        return Signer(
            [(self.secret.get_secret_value(), math.inf), *previous],
            self.signing_key.get_secret_value() if self.signing_key else None,
        )

    @property
    def target(self) -> httpx.URL:
        """The URL, parsed; host names in other scripts are IDNA encoded."""
        return httpx.URL(self.url.get_secret_value())

    @property
    def extra_headers(self) -> dict[str, str]:
        """The additional headers in clear, names in lower case."""
        return {name.lower(): value.get_secret_value() for name, value in self.headers.items()}

    @field_validator("url")
    @classmethod
    def _can_be_sent_to(cls, url: SecretStr) -> SecretStr:
        check_url(url.get_secret_value())
        return url


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A destination in the form in which it is sent to; made once for each configuration.

    Attributes:
        url: identifies the endpoint among a tenant's.
        head: the request line and all headers that are the same in every request.
        signer: signs every request.
    """

    url: str
    origin: Origin
    head: bytes
    signer: Signer


def prepare(webhook: WebhookDestination, *, user_agent: str, tls: ssl.SSLContext) -> Endpoint:
    """The endpoint of a destination.

    Raises:
        ValueError: the secret is not usable.
    """
    url = webhook.target
    is_tls = url.scheme == "https"
    host = url.raw_host.decode("ascii")
    headers = {
        "host": url.netloc.decode("ascii"),
        "content-type": "application/json",
        "user-agent": user_agent,
        **webhook.extra_headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return Endpoint(
        str(url),
        Origin(host, url.port or (443 if is_tls else 80), tls if is_tls else None),
        b"POST %b HTTP/1.1\r\n%b" % (url.raw_path, lines.encode("ascii")),
        webhook.signer,
    )


def excerpt_of(answer: Answer) -> str:
    """The beginning of the body, as text that PostgreSQL can store; nothing is decompressed."""
    if (encoding := answer.headers.get("content-encoding", "identity").lower()) != "identity":
        known = encoding if encoding in {"br", "deflate", "gzip", "zstd"} else "unknown"
        return f"(body not shown, its content-encoding is {known})" if answer.body else ""
    return answer.body.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def judge(answer: Answer, *, now: datetime, retry_after_cap_s: float) -> Receipt:
    """The result of an attempt that the endpoint answered.

    2xx is success. 410 means that the endpoint wants no more deliveries. Every other status is
    tried again: a redirection, since following it would send a signed body to an address that is
    not configured, and any 4xx, since endpoints answer so while they are deployed or misconfigured.

    Source: Standard Webhooks 1.0.0, "Deliverability and reliability".
    """
    status = answer.status
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's classes
        return Receipt("delivered", status_code=status, excerpt=excerpt_of(answer))
    if status == _GONE:
        return Receipt(
            "refused",
            "ENDPOINT_GONE",
            "the endpoint answered 410, so its route is disabled",
            status_code=status,
            excerpt=excerpt_of(answer),
            disables_route=True,
        )
    wait_s = parse_retry_after(answer.headers.get("retry-after"), now=now)
    return Receipt(
        "failed",
        f"HTTP_{status}",
        f"the endpoint answered {status}",
        status_code=status,
        excerpt=excerpt_of(answer),
        retry_after_s=None if wait_s is None else min(wait_s, retry_after_cap_s),
    )


def result_of(answer: Answer) -> Result:
    """What an answer says of its endpoint.

    A client error is an answer like a success: the endpoint works, and another job of another route
    may well be accepted. 429, 502 and 504 ask for fewer requests.

    Source: Standard Webhooks 1.0.0, "Deliverability and reliability".
    """
    if answer.status in _THROTTLES:
        return "throttled"
    return "failed" if answer.status >= 500 else "answered"  # noqa: PLR2004 - HTTP's classes


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Seconds of a `Retry-After` header: a number or an HTTP date; None for neither, 0 if past.

    Source: RFC 9110, section 10.2.3.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
