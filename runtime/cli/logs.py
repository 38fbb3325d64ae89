"""`runtime logs`: shows the log lines of all hosts, over NATS."""

import asyncio
import contextlib
import secrets
import sys
from datetime import UTC, datetime
from typing import get_args

import click
from pydantic import ValidationError

from runtime.broker.connection import Broker
from runtime.broker.subscription import Subscription
from runtime.cli.connection import nats_url_option, run
from runtime.cli.failure import ExitCode, exit_with_nothing_done
from runtime.cli.log_lines import LinePrinter
from runtime.cli.parameters import FUNCTION_PATTERN
from runtime.cli.printing import printable, wrapped
from runtime.errors import Unavailable
from runtime.log_stream.log_protocol import LOG_REQUESTS, LogLevel, LogRequest, ProcessLines
from runtime.message import Message
from runtime.observe.log_feed import RING_LINES
from runtime.subjects import HOST_INBOX

ANSWERS_S = 1.0
"""How long to wait for the hosts' first lines."""
MORE_ANSWERS_S = 5.0
"""How long to wait for the rest of the first lines of a process that sends many."""
RENEW_S = 3.0
WATCH_S = 0.5
"""How often a lost connection is looked for."""


@click.command()
@click.argument("name", required=False, metavar="[NAME]", type=FUNCTION_PATTERN)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option(
    "-n",
    "--last",
    type=click.IntRange(0, RING_LINES),
    default=50,
    show_default=True,
    help="The most lines from before.",
)
@click.option(
    "--level",
    type=click.Choice(get_args(LogLevel), case_sensitive=False),
    default="INFO",
    show_default=True,
    help="The least level. With -f the hosts send also lines below their own level.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each line.")
@nats_url_option
def logs(
    *,
    name: str | None,
    follow: bool,
    last: int,
    level: LogLevel,
    as_json: bool,
    nats_url: str | None,
) -> None:
    """Show the log lines of all hosts, or those of the functions NAME (may have * and ?).

    Each process keeps its last 1,000 lines. With -f, `--level debug` also shows what no host
    writes; nothing is restarted, and hosts do this work only while somebody listens. Of a flood
    each process sends 2,000 lines a second, and the number of lines left out.
    """
    request = LogRequest(level=level, function=name, last=last)
    listener = LogListener(request, LinePrinter(as_json=as_json), last=last)
    try:
        run(nats_url, lambda broker: listener.follow(broker) if follow else listener.show(broker))
    except KeyboardInterrupt:
        raise SystemExit(ExitCode.DONE) from None  # The way to end it.
    if not listener.has_hosts:
        _note("No host answers: start one with `runtime serve`")
    elif not listener.knows_function:
        exit_with_nothing_done(f"No host runs a function named {printable(name or '')}")


class LogListener:
    """Receives the lines of all processes, and prints them.

    Args:
        request: what the processes are asked for.
        printer: prints the lines.
        last: the most lines from before, of all processes together.

    Attributes:
        has_hosts: whether a process has answered.
        knows_function: whether a process runs a function that was asked for.
    """

    def __init__(self, request: LogRequest, printer: LinePrinter, *, last: int) -> None:
        self._request = request
        self._printer = printer
        self._last = last
        self._inbox = f"{HOST_INBOX}.logs.{secrets.token_hex(11)}"
        self._since = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._messages: asyncio.Queue[ProcessLines] = asyncio.Queue()
        self.has_hosts = False
        self.knows_function = False

    async def show(self, broker: Broker) -> None:
        """Print the last lines."""
        subscription = await self._begin(broker)
        try:
            await self._show_first()
        finally:
            await self._end(broker, subscription)

    async def follow(self, broker: Broker) -> None:
        """Print the last lines, and new ones until this is cancelled."""
        subscription = await self._begin(broker)
        renewing = asyncio.create_task(self._renew(broker))
        watching = asyncio.create_task(_watch(broker))
        try:
            await self._show_first()
            self._say_whom_it_waits_for()
            while True:
                self._print(await self._messages.get())
        finally:
            for task in (renewing, watching):
                task.cancel()
            await asyncio.gather(renewing, watching, return_exceptions=True)
            await self._end(broker, subscription)

    async def _begin(self, broker: Broker) -> Subscription:
        subscription = await broker.subscribe(self._inbox, self._receive)
        await self._ask(broker, self._request)
        return subscription

    async def _end(self, broker: Broker, subscription: Subscription) -> None:
        # Without a connection the hosts forget the listener when its lease ends.
        with contextlib.suppress(Unavailable):
            await self._ask(broker, self._request.model_copy(update={"stop": True}))
        await subscription.unsubscribe()

    async def _ask(self, broker: Broker, request: LogRequest) -> None:
        await broker.send(LOG_REQUESTS, request.encode(), self._inbox)

    def _receive(self, message: Message) -> None:
        try:
            lines = ProcessLines.model_validate_json(message.data)
        except ValidationError:
            return  # Also the server's answer that no host listens.
        self._messages.put_nowait(lines)

    async def _show_first(self) -> None:
        """Print the lines from before in the order of their times, and those that came meanwhile.

        Waits for `ANSWERS_S`, and longer for a process whose lines come in several messages.
        """
        messages: list[ProcessLines] = []
        unfinished: set[str] = set()
        now = asyncio.get_running_loop().time
        began_s = now()
        while True:
            ends_s = began_s + (MORE_ANSWERS_S if unfinished else ANSWERS_S)
            try:
                async with asyncio.timeout_at(ends_s):
                    message = await self._messages.get()
            except TimeoutError:
                break
            messages.append(message)
            (unfinished.add if message.more else unfinished.discard)(message.feed)
        for message in messages:
            self._meet(message)
        self._print_sorted(messages)

    def _print_sorted(self, messages: list[ProcessLines]) -> None:
        found = [
            (str(entry.get("timestamp", "")), message, entry)
            for message in messages
            for number, entry in message.lines
            if self._printer.is_new(message, number)
        ]
        found.sort(key=lambda each: each[0])
        before = sum(time < self._since for time, _, _ in found)
        for _, message, entry in found[max(0, before - self._last) :]:
            self._printer.show(message, entry)
        for message in messages:
            if message.dropped:
                self._printer.show_dropped(message)

    def _meet(self, message: ProcessLines) -> None:
        self.has_hosts = True
        self.knows_function |= message.first and message.knows
        self._printer.meet(message)
        if message.refused:
            _note(f"{printable(message.place)} refuses: it has too many listeners")

    def _print(self, message: ProcessLines) -> None:
        self._meet(message)
        for number, entry in message.lines:
            if self._printer.is_new(message, number):
                self._printer.show(message, entry)
        if message.dropped:
            self._printer.show_dropped(message)

    def _say_whom_it_waits_for(self) -> None:
        if not self.has_hosts:
            _note("No host answers yet: its lines will be shown when one starts")
        elif not self.knows_function:
            _note(f"No host runs a function named {printable(self._request.function or '')} yet")

    async def _renew(self, broker: Broker) -> None:
        """Repeat the request; a process that is asked for the first time sends what it missed."""
        again = self._request.model_copy(update={"last": 0, "since": self._since})
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._ask(broker, again)
            except Unavailable:
                continue  # Asked again after the connection is rebuilt.


async def _watch(broker: Broker) -> None:
    """Say when the connection is lost and when it is back."""
    was_connected = True
    while True:
        await asyncio.sleep(WATCH_S)
        if broker.is_connected != was_connected:
            was_connected = broker.is_connected
            _note("NATS answers again" if was_connected else "NATS is away, waiting for it")


def _note(sentence: str) -> None:
    click.echo(wrapped(sentence, sys.stderr), err=True)
