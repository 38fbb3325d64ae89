"""Events of devices that the platform finds out, such as a command's change of state.

An event is a row of the outbox in the transaction that made it, and then a message of the stream
`DEVICE_EVENTS` on `device_events.{tenant}.{device}.{kind}`. Events of one device keep their order.
Routes get an event on the topic `tenant/{tenant}/device/{device}/{kind}` if their topic filter
names the first level of its kind. Write no secret into one.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from functions.domain.identifiers import DeviceId, TenantId
from functions.domain.outbox import Connection, NewMessage, add_messages
from functions.domain.topic_filters import topic_matches
from functions.domain.topics import PRESENCE

STREAM = "DEVICE_EVENTS"
COMMAND_STATE = "commands/state"
"""The kind of event that tells of a command's change of state."""
LEVELS = frozenset({"commands", PRESENCE})
"""First levels of the kinds of events."""
_LEVEL = 4


class NewEvent(NamedTuple):
    """An event of a device.

    Attributes:
        kind: levels of a topic, lower case, digits and underscores: `commands/state`.
        event_id: of one id there is one event for ever, and one job for each route; letters,
            digits, `_` and `-`.
        payload: what happened, for a program.
    """

    tenant_id: str
    device_id: str
    kind: str
    event_id: str
    payload: Mapping[str, Any]


class DeviceEvent(BaseModel):
    """An event as the stream holds it."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    event_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    tenant_id: TenantId
    device_id: DeviceId
    kind: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}(/[a-z0-9_]{1,32}){0,3}$")]
    at: AwareDatetime
    payload: dict[str, Any]

    @property
    def topic(self) -> str:
        """The topic that routes match."""
        return f"tenant/{self.tenant_id}/device/{self.device_id}/{self.kind}"

    @property
    def subject(self) -> str:
        """The subject in the stream."""
        return _subject(self.tenant_id, self.device_id, self.kind)


async def add_events(connection: Connection, events: Iterable[NewEvent]) -> None:
    """Queue events, in the caller's transaction; `payload` has `at`, an aware time."""
    await add_messages(
        connection,
        [
            NewMessage(
                f"{each.tenant_id}/events",
                _subject(each.tenant_id, each.device_id, each.kind),
                each.event_id,
                orjson.dumps({**each._asdict(), "at": each.payload["at"]}),
            )
            for each in events
        ],
    )


def is_event_filter(topic_filter: str) -> bool:
    """Whether a route asks for events: its filter names the first level of their kind.

    A filter with a wildcard there asks for what devices send, and gets no events.
    """
    levels = topic_filter.split("/")
    return len(levels) > _LEVEL and levels[_LEVEL] in LEVELS


def takes_event(topic_filter: str, event: DeviceEvent) -> bool:
    """Whether a route wants the event."""
    return is_event_filter(topic_filter) and topic_matches(topic_filter, event.topic)


def _subject(tenant_id: str, device_id: str, kind: str) -> str:
    token = device_id.replace(".", "//")
    return f"device_events.{tenant_id}.{token}.{kind.replace('/', '.')}"


__all__ = [
    "COMMAND_STATE",
    "LEVELS",
    "STREAM",
    "DeviceEvent",
    "NewEvent",
    "add_events",
    "is_event_filter",
    "takes_event",
]
