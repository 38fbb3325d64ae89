"""Endpoint of the management API that makes commands."""

import json
import time
from datetime import timedelta
from typing import Annotated
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from functions.commands.command import Command, DeviceCommandsRequest, command_of, find_command
from functions.commands.rates import Rate
from functions.commands.store import QUERIES, Wanted, add_command
from functions.domain.command_polls import CommandId
from functions.domain.values import JsonObject, Name, same_json
from runtime import Context, Event, Reject

_DAY_S = 86_400


class CommandSettings(BaseModel):
    """Settings of the endpoint.

    Attributes:
        max_open: how many commands of a tenant may be under way: neither answered finally nor
            ended by their times. One more is refused.
        rate_per_s, burst: how many commands of a tenant all hosts make.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_open: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    rate_per_s: Annotated[float, Field(gt=0, le=100_000)] = 100.0
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 1000


# The name under which the host looks for a function's settings.
Settings = CommandSettings


class CreateCommand(DeviceCommandsRequest):
    """A command for a device.

    Attributes:
        command_id: set it to make the request safe to repeat; generated when absent. The same
            request gets the same command, another one with this id is refused.
        expires_in_s: a command that is still queued after this time expires, and none is sent.
        timeout_s: a sent command without a final answer times out after this time.
        in_order: send it only when the device's earlier commands in order have ended.
    """

    command_id: CommandId | None = None
    name: Name
    arguments: JsonObject = Field(default_factory=dict)
    expires_in_s: Annotated[int, Field(ge=1, le=30 * _DAY_S)] = _DAY_S
    timeout_s: Annotated[int, Field(ge=1, le=30 * _DAY_S)] = 300
    in_order: bool = False


async def start(ctx: Context[Rate]) -> Rate:
    """The rate of each tenant."""
    settings: CommandSettings = ctx.settings
    rate = Rate("commands", settings.rate_per_s, settings.burst, ctx, has_own_clock=True)
    rate.sharing.start()
    return rate


async def stop(ctx: Context[Rate]) -> None:
    """Stop sharing it."""
    await ctx.state.sharing.stop()


async def create_command(event: Event[CreateCommand], ctx: Context[Rate]) -> Command:
    """Store a command and send it to the device, again and again until the device answers.

    It is `queued` until a door has handed it to the device's broker, or to the device itself.
    """
    wanted = event.data
    command_id = wanted.command_id or uuid4().hex
    status = await ctx.postgres.fetchval(
        QUERIES["device_status"], wanted.tenant_id, wanted.device_id
    )
    if status is None:
        raise Reject("DEVICE_NOT_FOUND", "The tenant has no such device.", status=404)
    if status != "ACTIVE":
        raise Reject("DEVICE_REVOKED", "The device is revoked.", status=409)
    if not ctx.state.take((wanted.tenant_id,), time.time_ns()):
        raise Reject("RATE_LIMITED", "The tenant makes commands too fast.", status=429)
    new = Wanted(
        command_id,
        wanted.tenant_id,
        wanted.device_id,
        wanted.name,
        json.dumps(wanted.arguments),
        wanted.expires_in_s,
        wanted.timeout_s,
        wanted.in_order,
    )
    max_open: int = ctx.settings.max_open
    row = await add_command(ctx.postgres, new, max_open)
    return command_of(row) if row is not None else await _repeated(ctx, wanted, command_id)


async def _repeated(ctx: Context[Rate], wanted: CreateCommand, command_id: str) -> Command:
    existing = await find_command(ctx, wanted.tenant_id, wanted.device_id, command_id)
    if existing is None:
        raise Reject(
            "TOO_MANY_COMMANDS", "Too many commands of the tenant are under way.", status=429
        )
    if different := differences(existing, wanted):
        text = f"The device has a command with this id and another {' and '.join(different)}."
        raise Reject("COMMAND_EXISTS", text, status=409)
    return existing


def differences(existing: Command, wanted: CreateCommand) -> list[str]:
    """The fields in which a request is not the one that made the command."""
    equal = {
        "name": existing.name == wanted.name,
        "arguments": same_json(existing.arguments, wanted.arguments),
        # Both times are of the transaction that made the command.
        "expires_in_s": existing.expires_at - existing.created_at
        == timedelta(seconds=wanted.expires_in_s),
        "timeout_s": existing.timeout_s == wanted.timeout_s,
        "in_order": existing.in_order == wanted.in_order,
    }
    return [field for field, is_equal in equal.items() if not is_equal]


__all__ = ["CommandSettings", "CreateCommand", "Settings", "create_command", "start", "stop"]
