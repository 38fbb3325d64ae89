"""One shadow and its changes, by the same rules for devices and for the management API. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from functions.shadow.document import (
    MAX_SECTION_BYTES,
    InvalidDocument,
    check_patch,
    delta,
)
from functions.shadow.section import Json, Section


class ChangeRefused(Exception):  # noqa: N818 - an outcome, not an error
    """The change is not made, or the question not answered.

    Attributes:
        code: `VERSION_CONFLICT`, `SHADOW_INVALID`, `SHADOW_TOO_LARGE`, `TOO_MANY_SHADOWS` or
            `RATE_LIMITED`.
        reason: one sentence that repeats nothing of the content.
    """

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}")


class ShadowKey(NamedTuple):
    """Which shadow; the name is empty for the device's shadow without a name."""

    tenant_id: str
    device_id: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """A change of a shadow.

    Attributes:
        state: patches by section, `desired` and `reported`; None deletes a section.
        version: the version that the shadow must have; None for any.
        client_token: returned with every answer to the change.
    """

    state: dict[str, Any]
    version: int | None = None
    client_token: str | None = None


@dataclass(slots=True)
class Shadow:
    """One shadow of a device.

    Attributes:
        version: +1 per accepted change, also across a deletion; 0 before the first one.
        last_sequence: the stream sequence of the newest applied message.
        last_message_ns: the newest stamp of a message.
        last_stamp_ns: the newest stamp of a message or a call.
        deleted: True when there is no such shadow at present.
        read_at_ns: when it was read, by the database's clock.
        read_bytes: the size of both sections as JSON when they were read.
    """

    key: ShadowKey
    version: int = 0
    desired: Section = field(default_factory=Section)
    reported: Section = field(default_factory=Section)
    last_sequence: int = 0
    last_message_ns: int = 0
    last_stamp_ns: int = 0
    updated_at: datetime | None = None
    deleted: bool = True
    read_at_ns: int = 0
    read_bytes: int = 0

    def delta(self) -> Json:
        """The desired values that the device has not reported."""
        return delta(self.desired.state(), self.reported.state())

    def stamp_message(self, sequence: int, stored_at_ns: int) -> int:
        """The stamp of a change that came as a stored message.

        It is the time at which the message was stored, so a call of the API between that time and
        the moment in which the message is handled wins. A message is late when both its sequence
        and its time are before the newest message's. A lower sequence alone means that the stream
        was created again. An earlier time alone means that the server's clock was put back: the
        time says nothing then, and the message's values win over everything.
        """
        if stored_at_ns > self.last_message_ns:
            stamp_ns = stored_at_ns
        elif sequence < self.last_sequence and stored_at_ns < self.last_message_ns:
            return stored_at_ns
        else:
            stamp_ns = self.last_stamp_ns + 1
        self.last_sequence = sequence
        self.last_message_ns = stamp_ns
        self.last_stamp_ns = max(self.last_stamp_ns, stamp_ns)
        return stamp_ns

    def stamp_call(self) -> int:
        """The stamp of a change by a call of the API: calls take effect as they are handled.

        It is by the database's clock, which all hosts have in common: what a host whose clock is an
        hour ahead wrote would overrule devices for that hour.
        """
        self.last_stamp_ns = max(self.read_at_ns, self.last_stamp_ns + 1)
        return self.last_stamp_ns

    def update(self, update: Update, stamp: Callable[[], int]) -> int:
        """Merge an update and raise the version; returns the update's stamp.

        Args:
            update: the change.
            stamp: returns the update's stamp; called once, when the update is valid.

        Raises:
            ChangeRefused: the update is not valid; do not save the shadow.
        """
        self.require_version(update.version)
        try:
            for patch in update.state.values():
                check_patch(patch)
        except InvalidDocument as invalid:
            raise ChangeRefused("SHADOW_INVALID", str(invalid)) from None
        at = stamp()
        for name, patch in update.state.items():
            section: Section = getattr(self, name)
            section.merge(patch, at)
            if len(orjson.dumps(section.state())) > MAX_SECTION_BYTES:
                raise ChangeRefused(
                    "SHADOW_TOO_LARGE", f"a section may have {MAX_SECTION_BYTES} bytes as JSON"
                )
        self.version += 1
        self._set_deleted(at, deleted=False)
        return at

    def delete(self, version: int | None, stamp: Callable[[], int]) -> None:
        """Delete what was written before, and raise the version.

        Raises:
            ChangeRefused: `VERSION_CONFLICT`.
        """
        self.require_version(version)
        at = stamp()
        self.desired.merge(None, at)
        self.reported.merge(None, at)
        self.version += 1
        self._set_deleted(at, deleted=True)

    def _set_deleted(self, stamp_ns: int, *, deleted: bool) -> None:
        # The newest change decides: a late one neither brings a shadow back nor takes it away.
        if stamp_ns == self.last_stamp_ns:
            self.deleted = deleted

    def require_version(self, version: int | None) -> None:
        """Raise ChangeRefused, `VERSION_CONFLICT`, if the shadow has another version."""
        if version is not None and version != self.version:
            raise ChangeRefused("VERSION_CONFLICT", "the shadow has another version")
