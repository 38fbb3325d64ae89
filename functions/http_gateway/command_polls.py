"""Lets devices wait for their commands, by a request of its own or after a message."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import orjson
from pydantic import TypeAdapter, ValidationError

from functions.domain.command_polls import (
    MOST_KNOWN,
    MOST_WAIT_S,
    SUBJECT,
    CommandId,
    OpenCommands,
    PollCommands,
)
from functions.domain.topics import Topic
from functions.http_gateway.boundary import LEAVE
from functions.http_gateway.poll_places import PollPlaces
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request
from runtime import Context, RequestFailed, Unavailable, Unsendable

MOST_TTD_S = 60
_MAX_FIELDS = 2
_ANSWER_WITHIN_S = 3.0
_TELL_EVERY_S = 10.0

_KNOWN = TypeAdapter(list[CommandId])
_Commands = list[dict[str, Any]]


class Poll(NamedTuple):
    """What a device asks for in its query.

    Attributes:
        ttd_s: how long it waits for a command ("time till disconnect").
        known: ids of commands that it does not want again.
    """

    ttd_s: int
    known: list[str]


def read_poll(request: Request) -> Poll | None:
    """The poll in a request's query; None without one.

    Raises:
        ProblemError: 400 for a query that is not one.
    """
    query = request.scope["query_string"]
    if not query:
        return None
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            max_num_fields=_MAX_FIELDS,
        )
        fields = dict(pairs)
        if len(fields) != len(pairs) or not fields.keys() <= {"ttd", "known"}:
            raise _malformed()
        ids = [part for part in fields.get("known", "").split(",") if part]
        known = _KNOWN.validate_python(ids)
        ttd = fields.get("ttd", "0")
        if not (ttd.isascii() and ttd.isdigit() and len(ttd) <= len(str(MOST_TTD_S))):
            raise _malformed()
    except (UnicodeDecodeError, ValidationError, ValueError):
        raise _malformed() from None
    if int(ttd) > MOST_TTD_S or len(known) > MOST_KNOWN:
        raise _malformed()
    return Poll(int(ttd), known)


class CommandPolls:
    """Waits for commands of proved devices, one poll at a time for each device.

    A poll that waits holds no place of `max_concurrent`; `max_polls` limits them. It ends when a
    command is there, when its time is up, when the device asks again, closes its side of the
    connection, when a tenant with fewer polls needs its place, or the host stops. Commands are only
    read, so whoever does not get an answer asks again and loses nothing.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._places = PollPlaces(ctx.settings.max_polls)
        self._told_at_s = float("-inf")

    async def find(self, request: Request, topic: Topic, poll: Poll) -> _Commands:
        """The device's open commands, waiting for one if there is none.

        Raises:
            ProblemError: 503 when too many devices wait, or nobody answers.
        """
        commands = await self._ask(topic, poll, 0.0)
        if commands or not poll.ttd_s:
            return commands
        device = (topic.tenant_id, topic.device_id)
        ended = self._places.take(*device)
        if ended is None:
            raise ProblemError(503, "TOO_MANY_POLLS", "Too many devices wait for commands.")
        request.scope["state"][LEAVE]()
        try:
            return await self._wait(request, topic, poll, ended)
        finally:
            self._places.leave(*device, ended)

    async def find_after(self, request: Request, topic: Topic, poll: Poll) -> _Commands:
        """As `find`, for an answer that must not fail: the message is stored already."""
        try:
            return await self.find(request, topic, poll)
        except ProblemError as failure:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._told_at_s >= _TELL_EVERY_S:
                self._told_at_s = now_s
                self._ctx.log.warning(
                    "Devices are answered without their commands, which stay open.",
                    code=failure.code,
                )
            return []

    async def _wait(
        self, request: Request, topic: Topic, poll: Poll, ended: asyncio.Event
    ) -> _Commands:
        asking = asyncio.ensure_future(self._ask_in_rounds(topic, poll))
        ends: list[Coroutine[Any, Any, Any]] = [
            ended.wait(),
            _until_gone(request),
            self._ctx.stopping.wait(),
        ]
        others = [asyncio.ensure_future(end) for end in ends]
        try:
            await asyncio.wait([asking, *others], return_when=asyncio.FIRST_COMPLETED)
            return await asking if asking.done() else []
        finally:
            for task in (asking, *others):
                task.cancel()
            with suppress(Exception):
                await asyncio.gather(asking, *others, return_exceptions=True)

    async def _ask_in_rounds(self, topic: Topic, poll: Poll) -> _Commands:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + poll.ttd_s
        while (left_s := end_s - loop.time()) > 0:
            if commands := await self._ask(topic, poll, min(MOST_WAIT_S, left_s)):
                return commands
        return []

    async def _ask(self, topic: Topic, poll: Poll, wait_s: float) -> _Commands:
        question = PollCommands.model_construct(
            tenant_id=topic.tenant_id, device_id=topic.device_id, known=poll.known, wait_s=wait_s
        )
        try:
            reply = await self._ctx.request(
                SUBJECT,
                orjson.dumps(question.model_dump()),
                timeout_s=wait_s + _ANSWER_WITHIN_S,
            )
            return OpenCommands.model_validate_json(reply.data).commands
        except (RequestFailed, Unavailable, Unsendable, ValidationError) as failure:
            raise ProblemError(
                503, "COMMANDS_UNAVAILABLE", "The commands cannot be read at present; ask again."
            ) from failure


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _malformed() -> ProblemError:
    detail = f"A query may hold ttd, 0 to {MOST_TTD_S}, and known, up to {MOST_KNOWN} command ids."
    return ProblemError(400, "MALFORMED_QUERY", detail)


__all__ = ["MOST_TTD_S", "CommandPolls", "Poll", "read_poll"]
