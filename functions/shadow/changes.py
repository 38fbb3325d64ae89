"""Applies an update to a shadow, by the same rules for devices and for the management API."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from functions.domain.topics import downlink_subject
from functions.shadow.document import (
    MAX_SECTION_BYTES,
    InvalidDocument,
    Section,
    check_patch,
)
from functions.shadow.store import Shadow
from runtime import Context, Unavailable


class ChangeRefused(Exception):  # noqa: N818 - an outcome, not an error
    """The update is not applied.

    Attributes:
        code: `VERSION_CONFLICT`, `SHADOW_INVALID` or `SHADOW_TOO_LARGE`.
        reason: one sentence that repeats nothing of the content.
    """

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}")


@dataclass(frozen=True, slots=True)
class Update:
    """A change of a shadow.

    Attributes:
        state: patches by section, `desired` and `reported`; None deletes a section.
        version: the version that the shadow must have; None for any.
        client_token: returned with the delta.
    """

    state: dict[str, Any]
    version: int | None = None
    client_token: str | None = None


def apply_update(shadow: Shadow, update: Update, stamp: Callable[[], int]) -> None:
    """Merge an update and raise the version, or leave the shadow as it is.

    Args:
        shadow: the locked shadow.
        update: the change.
        stamp: returns the update's stamp; called once, when the update is valid.

    Raises:
        ChangeRefused: the update is not valid; do not save the shadow.
    """
    if update.version is not None and update.version != shadow.version:
        raise ChangeRefused("VERSION_CONFLICT", "the shadow has another version")
    try:
        for patch in update.state.values():
            check_patch(patch)
    except InvalidDocument as invalid:
        raise ChangeRefused("SHADOW_INVALID", str(invalid)) from None
    at = stamp()
    for name, patch in update.state.items():
        section: Section = getattr(shadow, name)
        section.merge(patch, at)
        if len(orjson.dumps(section.state())) > MAX_SECTION_BYTES:
            raise ChangeRefused(
                "SHADOW_TOO_LARGE", f"a section may have {MAX_SECTION_BYTES} bytes as JSON"
            )
    shadow.version += 1
    if shadow.desired.leaves or shadow.reported.leaves:
        shadow.deleted = False


async def send_delta(ctx: Context, shadow: Shadow, client_token: str | None) -> None:
    """Send the device its delta, if there is one; lost when the device is not subscribed.

    The shadow is stored already, so a failure here does not fail the update.
    """
    difference = shadow.delta()
    if not difference:
        return
    message = {
        "state": difference,
        "metadata": shadow.delta_metadata(),
        "version": shadow.version,
        "timestamp": int(shadow.updated_at.timestamp()) if shadow.updated_at else 0,
    }
    if client_token is not None:
        message["clientToken"] = client_token
    subject = downlink_subject(shadow.tenant_id, shadow.device_id, "shadow/delta")
    try:
        await ctx.publish_core(subject, orjson.dumps(message))
    except Unavailable:
        ctx.log.info("no delta was sent, as NATS is away")
