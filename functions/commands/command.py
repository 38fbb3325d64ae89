"""A command as the management API shows it."""

from datetime import datetime
from typing import Any

import asyncpg
import orjson
from pydantic import BaseModel, ConfigDict

from functions.commands.lifecycle import Status
from functions.commands.store import QUERIES, load
from functions.domain.identifiers import DeviceId, TenantId
from runtime import Context


class DeviceCommandsRequest(BaseModel):
    """A request about one device."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId
    device_id: DeviceId


class Command(BaseModel):
    """A command and its status.

    Attributes:
        sends: how often it was handed to the doors to devices.
        sent_at: when the first door had handed it over.
    """

    command_id: str
    tenant_id: str
    device_id: str
    name: str
    arguments: dict[str, Any]
    status: Status
    created_at: datetime
    expires_at: datetime
    timeout_s: int
    in_order: bool
    sends: int
    sent_at: datetime | None
    acked_at: datetime | None
    finished_at: datetime | None
    result: Any


async def find_command(
    ctx: Context[Any], tenant_id: str, device_id: str, command_id: str
) -> Command | None:
    """The command; None if the device has none with this id."""
    row = await ctx.postgres.fetchrow(QUERIES["find"], tenant_id, device_id, command_id)
    return None if row is None else command_of(row)


def command_of(row: asyncpg.Record) -> Command:
    """The command of a row."""
    return Command.model_validate(
        {**row, "arguments": orjson.loads(row["arguments"]), "result": load(row["result"])}
    )


__all__ = ["Command", "DeviceCommandsRequest", "command_of", "find_command"]
