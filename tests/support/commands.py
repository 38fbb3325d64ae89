"""Commands on a database without NATS."""

from datetime import datetime

from functions.commands.tending import Backlog, tend_commands
from runtime import Context
from tests.support.calls import Caller


class Answered:
    """The backlog of answers when all are applied, or those up to a time."""

    def __init__(self, until: datetime | None = None) -> None:
        self._until = until

    async def handled_until(self, ctx: Context[Backlog]) -> datetime | None:
        return self._until


async def tend(api: Caller, until: datetime | None = None) -> None:
    """Let `tend_commands` run once; answers are applied up to `until`."""
    await tend_commands(Caller(api.pool, api.outbox, state=Answered(until)).context())
