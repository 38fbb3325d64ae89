"""Endpoints of the management API for commands: create, get, list, cancel."""

import json
import time
from datetime import datetime
from typing import Annotated, Any
from uuid import uuid4

import asyncpg
import orjson
from pydantic import BaseModel, ConfigDict, Field

from functions.commands.lifecycle import AckStatus, Status
from functions.commands.store import QUERIES, Wanted, add_command, cancel, load, mark_sent
from functions.domain.command_polls import CommandId
from functions.domain.downlinks import SentCommands
from functions.domain.identifiers import DeviceId, TenantId
from functions.domain.paging import Cursor, Page, as_text, as_time, cut, read_cursor
from functions.domain.rate_limiter import RateLimiter
from functions.domain.values import JsonObject, Limit, Name
from runtime import Context, Event, Reject

_DAY_S = 86_400


class CommandSettings(BaseModel):
    """Settings of the endpoints for commands.

    Attributes:
        max_open: how many commands of a tenant may be under way: neither answered finally nor
            ended by their times. One more is refused.
        rate_per_s, burst: how many commands of a tenant one host makes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_open: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    rate_per_s: Annotated[float, Field(gt=0, le=100_000)] = 100.0
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 1000


# The name under which the host looks for a function's settings.
Settings = CommandSettings
Rate = RateLimiter[str]


class DeviceCommandsRequest(BaseModel):
    """A request about one device."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId
    device_id: DeviceId


class CreateCommand(DeviceCommandsRequest):
    """A command for a device.

    Attributes:
        command_id: set it to make the request safe to repeat; generated when absent.
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


class CommandRequest(DeviceCommandsRequest):
    """A request about one command."""

    command_id: CommandId


class ListCommands(DeviceCommandsRequest):
    """A request for a device's commands: all, or only those of one status."""

    status: Status | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


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


class DeviceAnswer(BaseModel):
    """One answer of the device. A late answer changed nothing: the command had already moved on."""

    status: AckStatus
    result: Any
    late_ack: bool
    received_at: datetime


class CommandWithAnswers(Command):
    """A command with its device's answers."""

    answers: list[DeviceAnswer]


class SentReport(BaseModel):
    """How many of the reported commands were queued, and are sent now."""

    sent: int


async def start(ctx: Context[Rate]) -> Rate:
    """The rate of each tenant."""
    settings: CommandSettings = ctx.settings
    return RateLimiter(settings.rate_per_s, settings.burst)


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
    if not ctx.state.take(wanted.tenant_id, time.time_ns()):
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
    return _command(row) if row is not None else await _repeated(ctx, wanted, command_id)


async def get_command(event: Event[CommandRequest], ctx: Context) -> CommandWithAnswers:
    """One command and the device's answers to it."""
    query = event.data
    command = await _find(ctx, query.tenant_id, query.device_id, query.command_id)
    if command is None:
        raise _not_found()
    key = (query.tenant_id, query.device_id, query.command_id)
    answers = await ctx.postgres.fetch(QUERIES["acks"], *key)
    return CommandWithAnswers(
        **command.model_dump(),
        answers=[
            DeviceAnswer.model_validate({**row, "result": load(row["result"])}) for row in answers
        ],
    )


async def list_commands(event: Event[ListCommands], ctx: Context) -> Page[Command]:
    """A device's commands, newest first."""
    query = event.data
    rows = await ctx.postgres.fetch(
        QUERIES["page"],
        query.tenant_id,
        query.device_id,
        query.status,
        *read_cursor(query.cursor, as_time, as_text),
        query.limit + 1,
    )
    items = [_command(row) for row in rows]
    return cut(items, query.limit, lambda item: (item.created_at, item.command_id))


async def cancel_command(event: Event[CommandRequest], ctx: Context) -> Command:
    """Cancel a command. A device that received it may still run it; the answer counts as late."""
    query = event.data
    key = (query.tenant_id, query.device_id, query.command_id)
    row = await cancel(ctx.postgres, *key)
    if row is not None:
        return _command(row)
    command = await _find(ctx, *key)
    if command is None:
        raise _not_found()
    if command.status != "cancelled":
        raise Reject("COMMAND_ENDED", f"The command is {command.status} already.", status=409)
    return command


async def mark_commands_sent(event: Event[SentCommands], ctx: Context) -> SentReport:
    """Take the report of a door: its broker has confirmed these commands."""
    return SentReport(sent=await mark_sent(ctx.postgres, event.data.commands))


async def _repeated(ctx: Context, wanted: CreateCommand, command_id: str) -> Command:
    existing = await _find(ctx, wanted.tenant_id, wanted.device_id, command_id)
    if existing is None:
        raise Reject(
            "TOO_MANY_COMMANDS", "Too many commands of the tenant are under way.", status=429
        )
    if (existing.name, existing.arguments) != (wanted.name, wanted.arguments):
        raise Reject("COMMAND_EXISTS", "The device has another command with this id.", status=409)
    return existing


async def _find(ctx: Context, tenant_id: str, device_id: str, command_id: str) -> Command | None:
    row = await ctx.postgres.fetchrow(QUERIES["find"], tenant_id, device_id, command_id)
    return None if row is None else _command(row)


def _not_found() -> Reject:
    return Reject("COMMAND_NOT_FOUND", "The device has no such command.", status=404)


def _command(row: asyncpg.Record) -> Command:
    return Command.model_validate(
        {**row, "arguments": orjson.loads(row["arguments"]), "result": load(row["result"])}
    )
