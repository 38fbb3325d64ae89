"""Sends signed requests to webhooks, and judges their answers."""

import asyncio
import ssl
import time
from datetime import UTC, datetime

from pydantic import SecretStr, field_validator

from functions.domain.target_auth import OAuth2Auth
from functions.outbound.endpoint import Endpoint, judge
from functions.outbound.receipt import Receipt, health_of_fault
from functions.outbound.settings import DeliverySettings
from functions.outbound.transport.client import HttpClient
from functions.outbound.transport.client_tls import TlsContexts
from functions.outbound.transport.connection import BODY_S, Answer
from functions.outbound.transport.connector import Origin
from functions.outbound.transport.faults import DestinationRefused, Fault, TokenFailed
from functions.outbound.transport.proxy import parse_proxy
from functions.outbound.transport.tokens import ANSWER_BYTES, Tokens
from runtime import AddressPolicy, parse_networks

# Beyond the time limit of an answer's status: its body is read, and what is left is closed.
OVERTIME_S = BODY_S + 3.0
_PROXY_AWAY_S = 30.0
_TOLD_EVERY_S = 60.0
_UNAUTHORIZED = 401


class WebhookSettings(DeliverySettings):
    """Settings of webhook delivery.

    Attributes:
        timeout_s: time limit until the answer's status; name resolution, connection and TLS
            included.
        allowed_networks: networks allowed beside the public ones: `10.0.0.0/8, 127.0.0.1:8090`.
        nameservers: name servers in place of the system's, such as `10.0.0.2, 10.0.0.3:5353`.
        proxy: the egress proxy for all requests, such as `http://user:password@proxy:3128`.
    """

    allowed_networks: str = ""
    nameservers: str = ""
    proxy: SecretStr = SecretStr("")

    @field_validator("allowed_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        parse_networks(text)
        return text

    @field_validator("proxy")
    @classmethod
    def _is_proxy(cls, text: SecretStr) -> SecretStr:
        parse_proxy(text.get_secret_value())
        return text


class WebhookSender:
    """Sends requests, and judges their answers.

    Args:
        settings: the function's.
        tls: trusts the authorities of the endpoints' certificates.
    """

    def __init__(self, settings: WebhookSettings, tls: ssl.SSLContext) -> None:
        self._loop = asyncio.get_running_loop()
        self._retry_after_cap_s = settings.retry_after_cap_s
        self._timeout_s = settings.timeout_s
        self._contexts = TlsContexts(tls)
        self._client, self._token_client = (
            HttpClient(
                AddressPolicy(parse_networks(settings.allowed_networks)),
                timeout_s=settings.timeout_s,
                excerpt_bytes=excerpt_bytes,
                nameservers=settings.nameservers.replace(",", " ").split(),
                proxy=parse_proxy(settings.proxy.get_secret_value()),
            )
            for excerpt_bytes in (settings.excerpt_bytes, ANSWER_BYTES)
        )
        self._tokens = Tokens(self._token_client, self._contexts)
        self._tell_again_at_s = 0.0

    async def post(
        self, endpoint: Endpoint, message_id: str, body: bytes, deadline_s: float | None = None
    ) -> Receipt:
        """Make one request, or with a token that the endpoint refuses, two.

        Args:
            endpoint: where to.
            message_id: the same on every attempt.
            body: what is sent.
            deadline_s: time of the loop's clock at which a status must have come; None for the
                settings' `timeout_s` from now.
        """
        if deadline_s is None:
            deadline_s = self._loop.time() + self._timeout_s
        try:
            answer = await self._exchange(endpoint, message_id, body, deadline_s)
        except DestinationRefused as refusal:
            return Receipt("refused", refusal.code, refusal.reason, health="unknown")
        except Fault as fault:
            return _receipt_of(fault)
        return judge(answer, now=datetime.now(UTC), retry_after_cap_s=self._retry_after_cap_s)

    def may_tell_of_proxy(self) -> bool:
        """Whether the log shall be told again, once a minute, that the proxy does not work."""
        now_s = self._loop.time()
        if now_s < self._tell_again_at_s:
            return False
        self._tell_again_at_s = now_s + _TOLD_EVERY_S
        return True

    async def aclose(self) -> None:
        """Close the connections."""
        await self._tokens.close()
        await self._token_client.close()
        await self._client.close()

    async def _exchange(
        self, endpoint: Endpoint, message_id: str, body: bytes, deadline_s: float
    ) -> Answer:
        tls = self._contexts.usual if endpoint.is_tls else None
        if endpoint.tls is not None:
            tls = await self._contexts.of(endpoint.tls)
        origin = Origin(endpoint.host, endpoint.port, tls)
        credential = endpoint.credential
        if credential is None:
            request = encode_request(endpoint, message_id, body)
            return await self._client.send(origin, request, deadline_s=deadline_s)
        token = await self._token(credential, deadline_s)
        request = encode_request(endpoint, message_id, body, token)
        answer = await self._client.send(origin, request, deadline_s=deadline_s)
        if answer.status != _UNAUTHORIZED or not self._tokens.may_renew(credential, token):
            return answer
        token = await self._token(credential, deadline_s)
        request = encode_request(endpoint, message_id, body, token)
        return await self._client.send(origin, request, deadline_s=deadline_s)

    async def _token(self, credential: OAuth2Auth, deadline_s: float) -> str:
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._tokens.get(credential)
        except TimeoutError:
            raise TokenFailed("TIMEOUT") from None


def _receipt_of(fault: Fault) -> Receipt:
    if fault.is_of_proxy:
        # No attempt is used up: the endpoint was not asked, and may be well.
        return Receipt("skipped", fault.code, fault.reason, retry_after_s=_PROXY_AWAY_S)
    return Receipt("failed", fault.code, fault.reason, health=health_of_fault(fault))


def encode_request(endpoint: Endpoint, message_id: str, body: bytes, token: str = "") -> bytes:
    """The bytes of a request, signed now.

    Args:
        endpoint: where to.
        message_id: the same on every attempt.
        body: what is signed.
        token: a bearer token; empty for none.
    """
    signature = endpoint.signer.sign(message_id, int(time.time()), body)
    lines = "".join([f"{name}: {value}\r\n" for name, value in signature.items()])
    if token:
        lines += f"authorization: Bearer {token}\r\n"
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (
        endpoint.head,
        lines.encode("ascii"),
        len(body),
        body,
    )


async def open_sender(settings: WebhookSettings) -> WebhookSender:
    """A sender; `aclose` ends it."""
    # Loading the authorities takes 20 ms and reads files.
    tls = await asyncio.to_thread(ssl.create_default_context)
    return WebhookSender(settings, tls)


__all__ = ["OVERTIME_S", "WebhookSender", "WebhookSettings", "encode_request", "open_sender"]
