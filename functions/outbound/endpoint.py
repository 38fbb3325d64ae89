"""A webhook route's configuration, and the result that an endpoint's answer stands for."""

import math
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated

import httpx
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, SecretStr

from functions.domain.destination_annotations import (
    CHECKED_AS,
    Format,
    Generated,
    StoredOnly,
)
from functions.domain.retry_after import parse_retry_after
from functions.domain.target_auth import Auth, BasicAuth, OAuth2Auth
from functions.domain.target_tls import TargetTls, read_target_tls
from functions.domain.webhooks import MAX_HEADERS, HeaderName, HeaderValue, check_url
from functions.outbound.receipt import EndpointHealth, Receipt
from functions.outbound.signature import Signer
from functions.outbound.transport.connection import Answer

USER_AGENT = "nats-function-runtime"
_GONE = 410
_THROTTLES = frozenset({429, 502, 504})


class PreviousSecret(BaseModel):
    """A secret that was replaced, and signs beside the new one for a while."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, extra="forbid")

    secret: SecretStr
    until: AwareDatetime


class WebhookDestination(BaseModel):
    """The `destination_config` of a route of type `webhook`.

    Attributes:
        url: `http` or `https`; not in `repr`, since many services put a token into the path.
        secret: signs every delivery; `whsec_` and base64.
        ed25519: whether the API makes a signing key.
        headers: additional headers, such as `Authorization`.
        previous_secrets: sign every delivery too, each until its time.
        signing_key: `whsk_` and base64; signs for receivers that have the public key.
        public_key: of the signing key.
        auth: proves to the endpoint who sends; None for nothing beside the signature.
        client_certificate: in PEM: the certificate, those up to its authority, and its private key.
        authorities: in PEM; trusted in place of the public ones.
    """

    model_config = ConfigDict(
        frozen=True,
        hide_input_in_errors=True,
        json_schema_extra={CHECKED_AS: "one-authorization"},
    )

    url: Annotated[
        str,
        Field(max_length=2048, repr=False, json_schema_extra={"pattern": r"^[\x21-\x7e]+$"}),
        AfterValidator(check_url),
        Format("http-url"),
    ]
    secret: Annotated[
        SecretStr,
        Format("webhook-secret"),
        Generated("webhook-secret", rotates_to="previous_secrets"),
    ]
    ed25519: bool = False
    headers: Annotated[
        dict[
            Annotated[HeaderName, Format("http-header-name")],
            Annotated[HeaderValue, Format("http-header-value")],
        ],
        Field(max_length=MAX_HEADERS),
    ] = Field(default_factory=dict)
    previous_secrets: Annotated[tuple[PreviousSecret, ...], StoredOnly()] = ()
    signing_key: Annotated[
        SecretStr | None,
        StoredOnly(),
        Generated("signing-key", only_if="ed25519", public_key="public_key"),
    ] = None
    public_key: Annotated[str | None, StoredOnly()] = None
    auth: Auth | None = None
    client_certificate: Annotated[SecretStr, Format("client-certificate")] | None = None
    authorities: Annotated[str, Format("authorities")] | None = None

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
        return httpx.URL(self.url)

    @property
    def extra_headers(self) -> dict[str, str]:
        """The additional headers in clear, names in lower case."""
        return {name.lower(): value.get_secret_value() for name, value in self.headers.items()}

    @cached_property
    def endpoint(self) -> "Endpoint":
        """The destination in the form in which it is sent to; made once.

        Raises:
            ValueError: a key is not usable.
        """
        return prepare(self, user_agent=USER_AGENT)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A destination in the form in which it is sent to; made once for each configuration.

    Attributes:
        url: identifies the endpoint among a tenant's.
        host: a name in ASCII, or an address without brackets.
        head: the request line and all headers that are the same in every request.
        signer: signs every request.
        credential: gets the token that every request has; None for none.
        tls: certificates of the tenant's own.
    """

    url: str
    is_tls: bool
    host: str
    port: int
    head: bytes
    signer: Signer
    credential: OAuth2Auth | None = None
    tls: TargetTls | None = None

    @property
    def origin(self) -> str:
        """What failures to connect count for.

        With certificates of its own an endpoint is an origin of its own: a handshake that they
        make fail says nothing about the other endpoints there.
        """
        origin = f"{'https' if self.is_tls else 'http'}://{self.host}:{self.port}"
        return f"{origin} {self.tls.fingerprint}" if self.tls else origin


def prepare(webhook: WebhookDestination, *, user_agent: str) -> Endpoint:
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
    if isinstance(webhook.auth, BasicAuth):
        headers["authorization"] = webhook.auth.header
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return Endpoint(
        str(url),
        is_tls,
        host,
        url.port or (443 if is_tls else 80),
        b"POST %b HTTP/1.1\r\n%b" % (url.raw_path, lines.encode("ascii")),
        webhook.signer,
        webhook.auth if isinstance(webhook.auth, OAuth2Auth) else None,
        read_target_tls(webhook.client_certificate, webhook.authorities) if is_tls else None,
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
        health=health_of(status),
    )


def health_of(status: int) -> EndpointHealth:
    """What a status says of its endpoint.

    A client error is an answer like a success: the endpoint works, and another job of another route
    may well be accepted. 429, 502 and 504 ask for fewer requests.

    Source: Standard Webhooks 1.0.0, "Deliverability and reliability".
    """
    if status in _THROTTLES:
        return "throttled"
    return "failed" if status >= 500 else "answered"  # noqa: PLR2004 - HTTP's classes
