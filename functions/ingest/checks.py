"""Checks of a telemetry message. Their order is part of the contract."""

import re
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, NamedTuple

from functions.domain.admission import (
    UNREGISTERED,
    CertificatePolicy,
    Refused,
    judge_certificate,
    judge_proof,
    judge_site,
    judge_size,
    judge_status,
    judge_subscription,
    judge_tenant,
)
from functions.domain.device_time import read_device_time_ns
from functions.domain.envelope import Envelope
from functions.domain.registry import RegisteredDevice
from functions.ingest.device_rates import DeviceRates

PLAIN = frozenset({int, float, bool, NoneType})
_METRIC_KEY = re.compile(r"[A-Za-z0-9_.:/%-]+", re.ASCII)
_MAX_TEXT_LENGTH = 1024
_MAX_KNOWN_KEYS = 10_000


class Accepted(NamedTuple):
    """The values of an accepted message that are written.

    `measured_at_ns`: when the device measured, if it says so, in nanoseconds since 1970.
    """

    site_id: str
    metrics: dict[str, Any]
    measured_at_ns: int | None = None


Verdict = Accepted | Refused


@dataclass(slots=True)
class Limits:
    """Limits of a message. `certificates`: see `IngestSettings`."""

    max_payload_bytes: int = 8192
    max_metrics: int = 50
    max_metric_key_length: int = 128
    require_token: bool = True
    require_subscription: bool = True
    certificates: CertificatePolicy = "off"
    known_keys: set[str] = field(default_factory=set)


def check(
    envelope: Envelope,
    device: RegisteredDevice | None,
    stored_at_ns: int,
    limits: Limits,
    rates: DeviceRates | None,
) -> Verdict:
    """The verdict on a message with a valid topic and valid JSON.

    Args:
        envelope: the message.
        device: the registered device; None when it is not registered.
        stored_at_ns: when the stream stored the message; subscription and certificate must have
            been in force then.
        limits: limits of the message.
        rates: the devices' rates; None on a redelivery, whose first delivery took a token.
    """
    if refused := judge_size(envelope, limits.max_payload_bytes) or judge_tenant(envelope):
        return refused
    if device is None:
        return UNREGISTERED
    return _judge_sender(envelope, device, stored_at_ns, limits) or _judge_content(
        envelope, device, stored_at_ns, limits, rates
    )


def check_imported(
    device: RegisteredDevice | None,
    site_id: str | None,
    metrics: object,
    limits: Limits,
    now_ns: int,
) -> Verdict:
    """The verdict on a row of the past, whose sender is a person or program of the tenant.

    Args:
        device: the registered device; None when it is not registered.
        site_id: the row's site; None for the device's.
        metrics: the row's metrics.
        limits: limits of a message; those on tokens and certificates do not apply.
        now_ns: the present, at which device and subscription must be in force.
    """
    if device is None:
        return UNREGISTERED
    refused = (
        judge_status(device)
        or judge_subscription(device, now_ns, required=limits.require_subscription)
        or (None if site_id is None else judge_site(device, site_id))
    )
    return refused or _judge_metrics(device.site_id, metrics, limits)


def _judge_sender(
    envelope: Envelope, device: RegisteredDevice, stored_at_ns: int, limits: Limits
) -> Refused | None:
    # A rule is called only where it applies: to look costs less than a call.
    refused = None if device.status == "ACTIVE" else judge_status(device)
    if refused is None and limits.require_token:
        refused = judge_proof(device, envelope, stored_at_ns, limits.certificates)
    if refused is None and limits.certificates != "off":
        refused = judge_certificate(device, envelope, stored_at_ns, limits.certificates)
    return refused


def _judge_content(
    envelope: Envelope,
    device: RegisteredDevice,
    stored_at_ns: int,
    limits: Limits,
    rates: DeviceRates | None,
) -> Verdict:
    """The verdict on a message that its device sent: what counts for or against the device."""
    topic, payload = envelope.topic, envelope.payload
    written = payload.get("ts")
    measured_at_ns = None if written is None else read_device_time_ns(written, stored_at_ns)
    if rates is not None:
        key = (topic[0], topic[1])
        # Most messages have no time of their own, and a token: what is left costs a call more.
        if not (measured_at_ns is None and rates.devices.take(key, stored_at_ns)) and not (
            rates.take(key, stored_at_ns, measured_at_ns, envelope.ts)
        ):
            return Refused("RATE_LIMITED", "the device exceeds its message rate")
        if rates.tenants is not None and not rates.tenants.take(topic[0], stored_at_ns):
            return Refused("TENANT_RATE_LIMITED", "the tenant's devices exceed their message rate")
    if not device.regular_from_ns <= stored_at_ns < device.regular_until_ns and (
        refused := judge_subscription(device, stored_at_ns, required=limits.require_subscription)
    ):
        return refused
    site_id = payload.get("site_id")
    if not isinstance(site_id, str) or not site_id:
        return Refused("MISSING_SITE_ID", "the payload names no site_id")
    if device.site_id != site_id and (refused := judge_site(device, site_id)):
        return refused
    return _judge_metrics(site_id, payload.get("metrics"), limits, measured_at_ns)


def _judge_metrics(
    site_id: str, metrics: object, limits: Limits, measured_at_ns: int | None = None
) -> Verdict:
    if metrics is None:
        return Accepted(site_id, {}, measured_at_ns)
    if not isinstance(metrics, dict):
        return Refused("METRICS_INVALID", "metrics is not a JSON object")
    if len(metrics) > limits.max_metrics:
        return Refused("TOO_MANY_METRICS", f"more than {limits.max_metrics} metrics")
    if not limits.known_keys.issuperset(metrics) and (bad := _judge_keys(metrics, limits)):
        return bad
    if not PLAIN.issuperset(map(type, metrics.values())) and (bad := _judge_values(metrics)):
        return bad
    return Accepted(site_id, metrics, measured_at_ns)


def _judge_keys(metrics: dict[str, Any], limits: Limits) -> Refused | None:
    for key in metrics:
        if len(key) > limits.max_metric_key_length:
            return Refused(
                "METRIC_KEY_TOO_LONG",
                f"a metric's name has more than {limits.max_metric_key_length} characters",
            )
        if not _METRIC_KEY.fullmatch(key):
            return Refused("METRIC_KEY_INVALID", "a metric's name may hold A-Z a-z 0-9 _ . : / % -")
    if len(limits.known_keys) > _MAX_KNOWN_KEYS:
        limits.known_keys.clear()
    limits.known_keys.update(metrics)
    return None


def _judge_values(metrics: dict[str, Any]) -> Refused | None:
    for value in metrics.values():
        if type(value) in PLAIN:
            continue
        if not isinstance(value, str):
            return Refused("METRIC_VALUE_INVALID", "a metric's value is a list or an object")
        if len(value) > _MAX_TEXT_LENGTH or "\x00" in value:
            return Refused(
                "METRIC_VALUE_INVALID",
                f"a metric's text holds a NUL or more than {_MAX_TEXT_LENGTH} characters",
            )
    return None


__all__ = ["Accepted", "Limits", "Refused", "Verdict", "check", "check_imported"]
