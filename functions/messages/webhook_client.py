"""Sends queued webhooks, signed with the keys of an account."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from functions.messages.account_configs import make_secret
from functions.messages.accounts import Account
from functions.messages.contents import OutMessage, WebhookContent
from functions.messages.provider import Receipt
from functions.messages.routed_provider import Sending
from functions.outbound import receipt as outbound
from functions.outbound.admission import SIGNS, Admission, Limits
from functions.outbound.endpoint import Endpoint, WebhookDestination
from functions.outbound.settings import DeliverySettings
from functions.outbound.signature import Signer
from functions.outbound.webhook_sender import WebhookSender

MAX_ENDPOINTS = 10_000
LEAST_RETRY_AFTER_S = 30.0
"""A shorter wait that an endpoint asks for would use up all attempts within seconds."""

UNSIGNED = Signer([])
"""Signs with no key: a webhook has an id and a time, and no signature."""


class Endpoints:
    """What all accounts share: the connections, and what is known of each endpoint."""

    def __init__(self, sender: WebhookSender, settings: DeliverySettings) -> None:
        self.sender = sender
        self.admission = Admission(
            Limits(
                of_endpoint=settings.per_endpoint,
                of_origin=settings.per_origin,
                pause_s=settings.breaker_pause_s,
                calls=settings.breaker_calls,
                ratio=settings.breaker_ratio,
                window_s=settings.breaker_window_s,
            )
        )


class WebhookClient:
    """Sends to whatever URL a message names, with the keys of one account.

    An endpoint is a tenant and a URL, as with routes: it has its own breaker, rate and number of
    requests at a time, and a failure is never the account's.
    """

    def __init__(self, account: Account, shared: Endpoints) -> None:
        self._config = account.config
        self._shared = shared
        self._endpoints: dict[str, Endpoint] = {}

    async def send(self, message: OutMessage) -> Sending:
        """Make one attempt, if the endpoint may have a request now."""
        content: WebhookContent = message.content
        try:
            body = encode_body(message)
        except (ValueError, TypeError):
            return Sending(Receipt("refused", "PAYLOAD_NOT_JSON", "the data cannot be JSON"))
        try:
            endpoint = self._endpoint(content.url)
        except ValueError:
            return Sending(Receipt("refused", "URL_INVALID", "no request can be sent to the URL"))
        admission = self._shared.admission
        key = (message.tenant_id, endpoint.url)
        if refusal := await admission.enter(key, endpoint.origin):
            return Sending(
                Receipt("busy", refusal.code, refusal.reason, retry_after_s=refusal.wait_s)
            )
        health: outbound.EndpointHealth = "unknown"
        try:
            receipt = await self._shared.sender.post(endpoint, message.message_id, body)
            health = receipt.health_of_endpoint
        finally:
            result, connected = SIGNS[health]
            admission.leave(key, endpoint.origin, result, connected=connected)
        return Sending(_of(receipt))

    async def close(self) -> None:
        """Nothing to close: the connections are shared."""

    def _endpoint(self, url: str) -> Endpoint:
        endpoint = self._endpoints.get(url)
        if endpoint is None:
            endpoint = make_endpoint(url, self._config)
            if len(self._endpoints) >= MAX_ENDPOINTS:
                self._endpoints.clear()
            self._endpoints[url] = endpoint
        return endpoint


def make_endpoint(url: str, config: Mapping[str, Any]) -> Endpoint:
    """The endpoint of a URL; without a secret its requests are not signed.

    Raises:
        ValueError: no request can be sent there, or a key is not usable.
    """
    secret = config.get("secret")
    destination = WebhookDestination.model_validate(
        {
            "url": url,
            "secret": secret or make_secret(),
            "signing_key": config.get("signing_key"),
            "headers": config.get("headers", {}),
        }
    )
    endpoint = destination.endpoint
    return endpoint if secret else replace(endpoint, signer=UNSIGNED)


def encode_body(message: OutMessage) -> bytes:
    """The body: type, time and data, as Standard Webhooks recommends; the same on every attempt.

    Raises:
        TypeError: the data holds a value that JSON lacks.
    """
    content: WebhookContent = message.content
    at = message.accepted_at or datetime.now(UTC)
    return orjson.dumps(
        {
            "type": content.type,
            "timestamp": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "data": content.data,
        }
    )


def _of(receipt: outbound.Receipt) -> Receipt:
    wait_s = receipt.retry_after_s
    if receipt.outcome == "skipped":
        return Receipt("busy", receipt.code, receipt.reason, retry_after_s=wait_s)
    reason = receipt.reason
    if receipt.disables_route:
        reason = "the endpoint answered 410: it wants no more webhooks"
    if wait_s is not None and wait_s < LEAST_RETRY_AFTER_S:
        wait_s = None
    return Receipt(receipt.outcome, receipt.code, reason, receipt.status_code, retry_after_s=wait_s)


__all__ = ["Endpoints", "WebhookClient", "encode_body", "make_endpoint"]
