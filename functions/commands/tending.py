"""Sends commands again that are not answered, and ends those whose time is up."""

from collections import Counter
from datetime import datetime
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, StringConstraints

from functions.commands.answer_backlog import AnswerBacklog
from functions.commands.store import end_overdue, release_all, send_due
from runtime import Context

_AT_ONCE = 1000
_ROUNDS = 20

Token = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


class TendingSettings(BaseModel):
    """Whose backlog is looked at before a command ends.

    Attributes:
        answers_stream, answers_durable: stream and consumer of the function that applies answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answers_stream: Token = "COMMANDS"
    answers_durable: Token = "ingest-commands"


# The name under which the host looks for a function's settings.
Settings = TendingSettings


class Backlog(Protocol):
    """See `AnswerBacklog`."""

    async def handled_until(self, ctx: Context["Backlog"]) -> datetime | None:
        """The time up to which answers were handled; None for all."""


async def start(ctx: Context[Backlog]) -> AnswerBacklog:
    """What knows which answers are not applied yet."""
    settings: TendingSettings = ctx.settings
    return AnswerBacklog(settings.answers_stream, settings.answers_durable)


async def tend_commands(ctx: Context[Backlog]) -> None:
    """Expire and time out, then send what is due. Several hosts may run it: each takes others.

    While answers wait that were stored in time, no command ends whose time was up after theirs.
    """
    ended: Counter[str] = Counter()
    until = await ctx.state.handled_until(ctx)
    for _ in range(_ROUNDS):
        statuses = await end_overdue(ctx.postgres, _AT_ONCE, until)
        ended.update(statuses)
        if len(statuses) < _AT_ONCE:
            break
    if ended:
        ctx.log.info("commands have ended", expired=ended["expired"], timed_out=ended["timed_out"])
    await release_all(ctx.postgres)
    for _ in range(_ROUNDS):
        if await send_due(ctx.postgres, _AT_ONCE) < _AT_ONCE:
            break


__all__ = ["Settings", "TendingSettings", "start", "tend_commands"]
