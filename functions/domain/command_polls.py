"""The question for a device's open commands, which the HTTP gateway asks, and the answer."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from functions.domain.identifiers import DeviceId, TenantId

SUBJECT = "management.commands.poll"
"""The endpoint's subject."""

MOST_WAIT_S = 5.0
"""How long one question may wait. Who wants to wait longer asks again, so that neither a host that
ends nor a device that is gone holds anything for long."""

MOST_KNOWN = 50

CommandId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class PollCommands(BaseModel):
    """A question for a device's open commands.

    Attributes:
        known: ids of commands that the device has, which it does not want again.
        wait_s: how long to wait for a command when there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId
    device_id: DeviceId
    known: Annotated[list[CommandId], Field(max_length=MOST_KNOWN)] = []
    wait_s: Annotated[float, Field(ge=0, le=MOST_WAIT_S)] = 0.0


class OpenCommands(BaseModel):
    """Open commands, the oldest first; the content of each is the same as by MQTT."""

    commands: list[dict[str, Any]]


__all__ = ["MOST_KNOWN", "MOST_WAIT_S", "SUBJECT", "CommandId", "OpenCommands", "PollCommands"]
