"""Limits what the gateway stores and reads for a device and for a tenant."""

import time
from typing import Any

from functions.domain.rate_limiter import RateLimiter
from functions.domain.topics import Topic
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.settings import GatewaySettings

_TOKEN_BYTES = 1000


class DoorRates:
    """Two token buckets for each message: its device's and its tenant's; and two for shadows.

    Charged after the device is proved, so that nobody can use up another's. Functions `ingest` and
    `shadow` have finer rates; these keep one device or tenant from filling the gateway and the
    stream. All gateways together keep the rates in the long run, see `RateSharing`.

    Attributes:
        limiters: by the names by which gateways share them.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._devices: RateLimiter[tuple[str, str]] | None = None
        self._tenants: RateLimiter[str] | None = None
        if settings.device_rate_per_s:
            self._devices = RateLimiter(settings.device_rate_per_s, settings.device_burst)
        if settings.tenant_rate_per_s:
            self._tenants = RateLimiter(settings.tenant_rate_per_s, settings.tenant_burst)
        self._askers: RateLimiter[tuple[str, str]] = RateLimiter(
            settings.shadow_rate_per_s, settings.shadow_burst
        )
        self._shadows: RateLimiter[str] = RateLimiter(
            settings.tenant_shadow_bytes_per_s / _TOKEN_BYTES,
            settings.tenant_shadow_burst_bytes // _TOKEN_BYTES,
        )
        named: dict[str, RateLimiter[Any] | None] = {
            "device": self._devices,
            "tenant": self._tenants,
            "shadow_device": self._askers,
            "shadow_tenant": self._shadows,
        }
        self.limiters: dict[str, RateLimiter[Any]] = {
            name: limiter for name, limiter in named.items() if limiter is not None
        }

    def take(self, topic: Topic) -> None:
        """Take one message's place; a request about a shadow takes one of these as well.

        Raises:
            ProblemError: 429, the device or its tenant has sent too many.
        """
        # The clock of the day, which all gateways have about alike.
        now_ns = time.time_ns()
        devices, tenants = self._devices, self._tenants
        device = (topic.tenant_id, topic.device_id)
        if topic.family == "shadow" and not self._askers.take(device, now_ns):
            raise ProblemError(429, "RATE_LIMITED", "The device asks of its shadows too often.")
        if devices is not None and not devices.take(device, now_ns):
            raise ProblemError(429, "RATE_LIMITED", "The device sends too many messages.")
        if tenants is not None and not tenants.take(topic.tenant_id, now_ns):
            raise ProblemError(
                429, "TENANT_RATE_LIMITED", "The tenant's devices send too many messages."
            )

    def require_shadow(self, topic: Topic) -> None:
        """Let a question for a shadow pass unless its tenant has read too much.

        Raises:
            ProblemError: 429.
        """
        if self._shadows.is_empty(topic.tenant_id, time.time_ns()):
            raise ProblemError(
                429, "TENANT_RATE_LIMITED", "The tenant's devices read too much of their shadows."
            )

    def charge_shadow(self, topic: Topic, size_bytes: int) -> None:
        """Charge a document that was read to its tenant."""
        self._shadows.charge(topic.tenant_id, time.time_ns(), -(-size_bytes // _TOKEN_BYTES))
