"""Lets devices in by MQTT: answers nats-server's question who a client is.

nats-server asks about every client that its configuration does not name (auth callout). A device
proves itself by its token as password or by its certificate, and may then publish and subscribe
below its own topics only. When its token, certificate or status changes, its session ends. The open
commands of a device that comes in are sent to it.
"""

import time
from dataclasses import dataclass, replace
from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from functions.device_auth.arrivals import Arrivals
from functions.device_auth.expired_sessions import ExpiredSessions
from functions.device_auth.floods import SessionLimits
from functions.device_auth.identity import Claimant, Refusal, permissions_of, read_claimant
from functions.device_auth.sessions import QUERIES, SessionGuard
from functions.device_auth.shut_out import CHANNEL, ShutOut
from functions.device_auth.stream_bounds import Bound, StreamBounds, bounds_of
from functions.device_auth.tokens import (
    AuthRequest,
    BadRequest,
    read_request,
    write_accepted,
    write_refused,
)
from functions.domain.failed_attempts import FailedAttempts
from functions.domain.rate_limiter import RateLimiter
from functions.domain.registry import RegisteredDevice, Registry
from functions.domain.source_addresses import PRIVATE, read_networks, source_name
from runtime import AccountKey, Context, Event, Reject

_NS = 1_000_000_000
_NO_DEVICE = RegisteredDevice("", token_hash=bytes(32))
_NOT_PROVEN = Refusal("the device is not known, or this is not its token or certificate")
_LIMITED = Refusal("this address has failed too often to prove this device")
_TOO_MUCH = Refusal("the device sends far more than it may, or connects too often")
_LOGINS_PER_S, _LOGINS_AT_ONCE = 1.0, 60
_REVOKED = Refusal("the device is revoked, or its tenant is suspended")


class DeviceAuthSettings(BaseModel):
    """The key that signs the answers, and where devices belong.

    Attributes:
        issuer: seed of the account key whose public part nats-server's `auth_callout` names;
            without it the function lets nobody in.
        account: the NATS account of the devices; `$G` where the configuration names none.
        sweep_s: seconds between two comparisons of all open sessions with the registry. A change of
            the registry ends a session at once; this is for changes that were not heard.
        shared_networks: where one address stands for many devices, such as a proxy's, separated by
            commas, with `private` for all private ones: such an address may fail for any number of
            devices. Every address may fail ten times for one.
        max_retained_bytes: what nats-server keeps of retained messages of all devices; the oldest
            ones go.
        max_retained_message_bytes: a larger message is passed on, and not retained.
        max_queued_bytes: what nats-server keeps for the sessions of all devices that are away; the
            oldest messages go. As much may wait for the second half of QoS 2.
        max_queued_messages: what it keeps for one device; the oldest go.
        session_expiry_s: the session of a client that is gone for so long is removed.
        max_subscriptions: of a session; one that has more at a look is ended and forgotten.
            nats-server counts up to four for one of a device.
        max_messages_per_s: what a session may send on average between two looks. One that sends
            more is ended. Ingest refuses what is beyond its own rates, which are lower; this keeps
            streams from being filled. In `sweep_s` a device may send what ingest takes at once
            after an outage, `backfill_burst`.
        max_bytes_per_s: likewise.
        block_s: how long a device that sent more stays outside, the next time for twice as long.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: SecretStr | None = None
    account: str = "$G"
    sweep_s: float = Field(default=30.0, ge=1, le=3600)
    shared_networks: str = PRIVATE
    max_retained_bytes: int = Field(default=64_000_000, ge=65_536, le=10**12)
    max_retained_message_bytes: int = Field(default=65_536, ge=1024, le=64_000_000)
    max_queued_bytes: int = Field(default=64_000_000, ge=65_536, le=10**12)
    max_queued_messages: int = Field(default=1000, ge=1, le=1_000_000)
    session_expiry_s: float = Field(default=7 * 86_400, ge=1, le=20 * 86_400)
    max_subscriptions: int = Field(default=400, ge=16, le=10_000)
    max_messages_per_s: float = Field(default=1000.0, ge=1, le=1_000_000)
    max_bytes_per_s: float = Field(default=2_000_000.0, ge=1000, le=10**10)
    block_s: float = Field(default=60.0, ge=1, le=86_400)

    @field_validator("shared_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        read_networks(text)
        return text

    @field_validator("issuer")
    @classmethod
    def _is_seed(cls, seed: SecretStr | None) -> SecretStr | None:
        if seed is not None:
            AccountKey.from_seed(seed.get_secret_value())
        return seed


# The name under which the host looks for a function's settings.
Settings = DeviceAuthSettings


@dataclass(slots=True)
class State:
    """What the function keeps from start to stop."""

    key: AccountKey
    registry: Registry
    attempts: FailedAttempts
    sessions: SessionGuard
    arrivals: Arrivals
    bounds: StreamBounds
    logins: RateLimiter[tuple[str, str]]
    outside: ShutOut


async def start(ctx: Context[State | None]) -> State | None:
    """Listen for changes of the registry, and look after open sessions."""
    settings: DeviceAuthSettings = ctx.settings
    if settings.issuer is None:
        ctx.log.info(
            "Devices cannot connect by MQTT with their own token: NATS_AUTH_ISSUER is not set"
        )
        return None
    outside = ShutOut(ctx.postgres, ctx.log, timedelta(seconds=settings.block_s))
    sessions = SessionGuard(ctx, settings.sweep_s, _limits(settings), outside)
    others = {CHANNEL: outside.hear}
    registry = Registry(ctx.postgres, ctx.log, on_change=sessions.hear, others=others)
    await registry.start()
    sessions.start()
    arrivals = Arrivals(ctx.postgres, ctx.log)
    arrivals.start()
    key = AccountKey.from_seed(settings.issuer.get_secret_value())
    shared = read_networks(settings.shared_networks)
    attempts = FailedAttempts(ctx.log, "device by MQTT", shared)
    expiry = timedelta(seconds=settings.session_expiry_s)
    expired = ExpiredSessions(ctx, expiry, sessions.client_ids)
    bounds = StreamBounds(ctx, _bounds(settings), expired, sessions.shut_out, settings.sweep_s)
    bounds.start()
    logins: RateLimiter[tuple[str, str]] = RateLimiter(_LOGINS_PER_S, _LOGINS_AT_ONCE)
    return State(key, registry, attempts, sessions, arrivals, bounds, logins, outside)


def _limits(settings: DeviceAuthSettings) -> SessionLimits:
    return SessionLimits(
        max_subscriptions=settings.max_subscriptions,
        messages_per_s=settings.max_messages_per_s,
        bytes_per_s=settings.max_bytes_per_s,
    )


def _bounds(settings: DeviceAuthSettings) -> tuple[Bound, ...]:
    return bounds_of(
        retained_bytes=settings.max_retained_bytes,
        retained_message_bytes=settings.max_retained_message_bytes,
        queued_bytes=settings.max_queued_bytes,
        queued=settings.max_queued_messages,
    )


async def stop(ctx: Context[State | None]) -> None:
    """Stop all of them."""
    if ctx.state is None:
        return
    await ctx.state.bounds.stop()
    await ctx.state.arrivals.stop()
    await ctx.state.sessions.stop()
    await ctx.state.registry.stop()


async def authorize(event: Event[bytes], ctx: Context[State | None]) -> bytes:
    """The answer to one authorization request.

    Raises:
        Reject: no server has signed the request, or no key was given to sign the answer.
    """
    state = ctx.state
    if state is None:
        raise Reject("NO_ISSUER", "no key was given to sign the answer", status=503)
    try:
        request = read_request(event.data)
    except BadRequest as bad:
        raise Reject("NOT_AN_AUTHORIZATION_REQUEST", str(bad)) from None
    claimant = await _identify(request, state, ctx)
    if isinstance(claimant, Refusal):
        return write_refused(request, state.key, claimant.reason)
    state.arrivals.add((claimant.tenant_id, claimant.device_id))
    return write_accepted(
        request,
        state.key,
        account=ctx.settings.account,
        name=claimant.name,
        permissions=permissions_of(claimant),
        until_s=claimant.until_s,
    )


async def _identify(
    request: AuthRequest, state: State, ctx: Context[State | None]
) -> Claimant | Refusal:
    claimant = read_claimant(request)
    attempts, source = state.attempts, source_name(request.host)
    if isinstance(claimant, Refusal):
        attempts.note(source)
        return claimant
    proof = (claimant.name, claimant.fingerprint or claimant.token_hash)
    key = (claimant.tenant_id, claimant.device_id)
    if not attempts.may_try(source, claimant.name, proof):
        attempts.note(source)
        return _LIMITED
    device = (await state.registry.devices([key]))[key]
    now_ns = time.time_ns()
    if not await _is_proven(claimant, device, now_ns, ctx) or device is None:
        attempts.fail(source, claimant.name)
        return _NOT_PROVEN
    attempts.succeed(source, proof)
    if (refusal := _refuse_proven(device, key, state)) is not None:
        return refusal
    if not claimant.fingerprint and device.is_previous_token(claimant.token_hash, now_ns):
        # The server itself ends the session together with the token.
        return replace(claimant, until_s=max(1, device.previous_until_ns // _NS))
    return claimant


def _refuse_proven(device: RegisteredDevice, key: tuple[str, str], state: State) -> Refusal | None:
    """Why a device that has proved itself stays outside. Who has not uses up nothing of it."""
    if device.status != "ACTIVE" or device.tenant_status != "ACTIVE":
        return _REVOKED
    if state.outside.has(key) or not state.logins.take(key, time.monotonic_ns()):
        return _TOO_MUCH
    return None


async def _is_proven(
    claimant: Claimant,
    device: RegisteredDevice | None,
    now_ns: int,
    ctx: Context[State | None],
) -> bool:
    if claimant.fingerprint:
        found: bool | None = await ctx.postgres.fetchval(
            QUERIES["find_active_certificate"],
            *(claimant.tenant_id, claimant.device_id, claimant.fingerprint),
        )
        return found is True
    # An unknown device costs the same time as a wrong token.
    known = _NO_DEVICE if device is None else device
    return known.is_token(claimant.token_hash, now_ns) and device is not None


__all__ = ["DeviceAuthSettings", "Settings", "authorize", "start", "stop"]
