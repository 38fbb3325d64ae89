"""Bounds what nats-server keeps of MQTT messages, which it does not bound itself.

nats-server makes its streams when the first MQTT client connects, and keeps limits that are changed
later (2.10 to 2.15). Each stream has a limit in all; beyond it the oldest messages go, or messages
of QoS 2 are refused. So that a device does not push out what is kept for others, each device has a
share as well: what is beyond it at a look goes, its oldest first.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from functions.device_auth.expired_sessions import ExpiredSessions
from functions.domain.background_task import BackgroundTask
from functions.domain.mqtt_session_records import (
    QUEUED,
    RELEASES,
    SESSIONS,
    UNRELEASED,
    staging_client,
)
from runtime import Context

RETAINED = "$MQTT_rmsgs"
_FIRST_LOOKS_S = 2.0
_REFUSED = "What nats-server keeps of MQTT messages has no bound"
_RETAINS = "The session of a device was ended: it retains messages on too many topics"
_PAGE = 100_000
_API_S = 10.0
_SHOWN = 250
# Tokens: $MQTT, the stream's kind, then those of the message's own subject.
_FAMILY, _TENANT = 2, 3
_DEVICE = {"tenant": 5, "telemetry": 4, "shadow": 4, "commands": 4}


@dataclass(frozen=True, slots=True)
class Bound:
    """What may be in one of nats-server's streams.

    Attributes:
        stream: its name.
        limits: fields of its configuration.
        share: messages of one device; 0 for any number.
        shuts_out: whether a device beyond its share may not stay.
    """

    stream: str
    limits: dict[str, Any]
    share: int = 0
    shuts_out: bool = False


def bounds_of(
    *, retained_bytes: int, retained_message_bytes: int, queued_bytes: int, queued: int
) -> tuple[Bound, ...]:
    """The bounds of all the streams.

    Args:
        retained_bytes: of all retained messages together.
        retained_message_bytes: of one of them; a larger one goes its way and is not kept.
        queued_bytes: of all messages that wait for devices' sessions together.
        queued: messages that wait for one device.
    """
    retained = {
        "max_bytes": retained_bytes,
        "max_msg_size": retained_message_bytes,
        "discard": "old",
    }
    return (
        # Each topic on which something was retained stays in the server's memory until a restart.
        Bound(RETAINED, retained, share=100, shuts_out=True),
        # No limit of a message here: a publisher whose message is refused is disconnected and sends
        # it again, although streams and subscribers have it.
        Bound(QUEUED, {"max_bytes": queued_bytes, "discard": "old"}, share=queued),
        # A message of QoS 2 between its first and its second half: a client has some 20.
        Bound(UNRELEASED, {"max_bytes": queued_bytes}, share=100),
        Bound(RELEASES, {"max_bytes": 8_000_000, "discard": "old"}),
    )


def share_filter(subject: str) -> str | None:
    """The filter of what is the same device's share as this subject; None for what is nobody's."""
    if (client_id := staging_client(subject)) is not None:
        return f"$MQTT.qos2.in.{client_id}.*"
    tokens = subject.split(".")
    family = tokens[_FAMILY] if len(tokens) > _FAMILY else ""
    at = _DEVICE.get(family, len(tokens))
    # On a subject that ends at its device at most one message is retained.
    return ".".join([*tokens[: at + 1], ">"]) if len(tokens) > at + 1 else None


def device_of(share: str) -> tuple[str, str] | None:
    """Tenant and device whose share this filter is; None for one of a client id."""
    tokens = share.split(".")
    at = _DEVICE.get(tokens[_FAMILY], len(tokens))
    if at >= len(tokens):
        return None
    return tokens[_TENANT], tokens[at].replace("//", ".")


def beyond_share(subjects: Mapping[str, int], share: int) -> list[str]:
    """The filters of devices that have more than their share.

    Args:
        subjects: how many messages each subject has.
        share: the most for one device.
    """
    counts: Counter[str] = Counter()
    for subject, count in subjects.items():
        if (found := share_filter(subject)) is not None:
            counts[found] += count
    return [found for found, count in counts.items() if count > share]


@dataclass(slots=True)
class StreamBounds(BackgroundTask):
    """Sets the limits of the streams, sets them again when they are changed, and enforces shares.

    Attributes:
        ctx: of the function.
        bounds: what may be in the streams.
        expired: removes sessions whose clients are gone.
        shut_out: ends the sessions of a device, which may not come back at once.
        every_s: seconds between two looks.
    """

    ctx: Context[Any]
    bounds: tuple[Bound, ...]
    expired: ExpiredSessions
    shut_out: Callable[[tuple[str, str], str], Awaitable[None]]
    every_s: float
    _told: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        BackgroundTask.__init__(self, self.ctx.log)

    async def _run(self) -> None:
        while True:
            exist = True
            for bound in self.bounds:
                try:
                    exist = await self._apply(bound) and exist
                except Exception as failure:  # noqa: BLE001 - of whatever kind, the next look comes
                    self._tell(bound.stream, f"{type(failure).__name__}: {failure}")
            try:
                await self.expired.remove()
            except Exception as failure:  # noqa: BLE001 - as above
                self._tell(SESSIONS, f"{type(failure).__name__}: {failure}")
            await asyncio.sleep(self.every_s if exist else min(self.every_s, _FIRST_LOOKS_S))

    async def _apply(self, bound: Bound) -> bool:
        """Set the limits where they differ; False while there is no such stream."""
        found = await self._ask(f"STREAM.INFO.{bound.stream}", {})
        if "config" not in found:
            return False
        config: dict[str, Any] = found["config"]
        if config | bound.limits != config:
            changed = await self._ask(f"STREAM.UPDATE.{bound.stream}", config | bound.limits)
            if "error" in changed:
                self._tell(bound.stream, str(changed["error"].get("description")))
            else:
                self.ctx.log.info(
                    "A stream of MQTT messages has bounds now", stream=bound.stream, **bound.limits
                )
        if bound.share and found["state"]["messages"] > bound.share:
            await self._enforce(bound)
        return True

    async def _enforce(self, bound: Bound) -> None:
        beyond = beyond_share(await self._subjects(bound.stream), bound.share)
        deleted = 0
        for filter_ in beyond:
            asked = {"filter": filter_, "keep": bound.share}
            deleted += (await self._ask(f"STREAM.PURGE.{bound.stream}", asked)).get("purged", 0)
        if deleted:
            # One line for all: devices decide how many they are.
            self.ctx.log.warning(
                "MQTT messages beyond their devices' share were deleted",
                stream=bound.stream,
                messages=deleted,
                share=bound.share,
                devices=len(beyond),
                first=beyond[0][:_SHOWN],
            )
        if bound.shuts_out:
            for device in {found for each in beyond if (found := device_of(each))}:
                await self.shut_out(device, _RETAINS)

    async def _subjects(self, stream: str) -> dict[str, int]:
        subjects: dict[str, int] = {}
        while True:
            asked = {"subjects_filter": ">", "offset": len(subjects)}
            found = (await self._ask(f"STREAM.INFO.{stream}", asked)).get("state", {})
            page: dict[str, int] = found.get("subjects") or {}
            subjects.update(page)
            if len(page) < _PAGE:
                return subjects

    async def _ask(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        reply = await self.ctx.request(
            f"$JS.API.{operation}", orjson.dumps(request), timeout_s=_API_S
        )
        answer: dict[str, Any] = orjson.loads(reply.data)
        return answer

    def _tell(self, stream: str, reason: str) -> None:
        if stream not in self._told:
            self._told.add(stream)
            self.ctx.log.warning(_REFUSED, stream=stream, reason=reason)


__all__ = [
    "RETAINED",
    "Bound",
    "StreamBounds",
    "beyond_share",
    "bounds_of",
    "device_of",
    "share_filter",
]
