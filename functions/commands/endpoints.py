"""Endpoints of the management API for commands: get, list, cancel; and for reports of doors."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from functions.commands.command import Command, DeviceCommandsRequest, command_of, find_command
from functions.commands.lifecycle import AckStatus, Status
from functions.commands.store import QUERIES, cancel, load, mark_sent
from functions.domain.command_polls import CommandId
from functions.domain.downlinks import SentCommands
from functions.domain.paging import Cursor, Page, as_text, as_time, count_fitting, cut, read_cursor
from functions.domain.values import Limit
from runtime import Context, Event, Reject


class CommandRequest(DeviceCommandsRequest):
    """A request about one command."""

    command_id: CommandId


class ListCommands(DeviceCommandsRequest):
    """A request for a device's commands: all, or only those of one status."""

    status: Status | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class DeviceAnswer(BaseModel):
    """One answer of the device. A late answer changed nothing: the command had already moved on."""

    status: AckStatus
    result: Any
    late_ack: bool
    received_at: datetime


class CommandWithAnswers(Command):
    """A command with its device's answers.

    Attributes:
        answers: in their order, so those that came in time are first.
        has_all_answers: False if one reply has no room for all of them.
    """

    answers: list[DeviceAnswer]
    has_all_answers: bool


class SentReport(BaseModel):
    """How many of the reported commands were queued, and are sent now."""

    sent: int


async def get_command(event: Event[CommandRequest], ctx: Context) -> CommandWithAnswers:
    """One command and the device's answers to it."""
    query = event.data
    command = await find_command(ctx, query.tenant_id, query.device_id, query.command_id)
    if command is None:
        raise _not_found()
    key = (query.tenant_id, query.device_id, query.command_id)
    rows = await ctx.postgres.fetch(QUERIES["acks"], *key)
    answers = [DeviceAnswer.model_validate({**row, "result": load(row["result"])}) for row in rows]
    # Written out a number can be several times as long as its device wrote it: 1e15.
    count = count_fitting(answers)
    return CommandWithAnswers(
        **command.model_dump(), answers=answers[:count], has_all_answers=count == len(answers)
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
    items = [command_of(row) for row in rows]
    return cut(items, query.limit, lambda item: (item.created_at, item.command_id))


async def cancel_command(event: Event[CommandRequest], ctx: Context) -> Command:
    """Cancel a command. A device that received it may still run it; the answer counts as late."""
    query = event.data
    key = (query.tenant_id, query.device_id, query.command_id)
    row = await cancel(ctx.postgres, *key)
    if row is not None:
        return command_of(row)
    command = await find_command(ctx, *key)
    if command is None:
        raise _not_found()
    if command.status != "cancelled":
        raise Reject("COMMAND_ENDED", f"The command is {command.status} already.", status=409)
    return command


async def mark_commands_sent(event: Event[SentCommands], ctx: Context) -> SentReport:
    """Take the report of a door: its broker has confirmed these commands."""
    return SentReport(sent=await mark_sent(ctx.postgres, event.data.commands))


def _not_found() -> Reject:
    return Reject("COMMAND_NOT_FOUND", "The device has no such command.", status=404)


__all__ = [
    "CommandWithAnswers",
    "DeviceAnswer",
    "cancel_command",
    "get_command",
    "list_commands",
    "mark_commands_sent",
]
