"""`runtime top`: every function with its load, live."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime

import click
from rich.console import Console
from rich.live import Live

from runtime.broker.connection import ApiError, Broker
from runtime.cli.connection import nats_url_option, run, show_server
from runtime.cli.failure import ExitCode, exit_with_nothing_done
from runtime.cli.function_views import FunctionView, find_functions
from runtime.cli.keyboard import keys_pressed
from runtime.cli.rate_history import RateHistory
from runtime.cli.selection import FunctionFilter, function_filter
from runtime.cli.top_screen import SORT_KEYS, Screen, rows_of
from runtime.errors import Unavailable
from runtime.observe.console import obeys_escapes

_SORTS = {sort.label: sort for sort in SORT_KEYS}


@click.command()
@function_filter
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(1.0, 60.0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often the figures are read.",
)
@click.option(
    "--sort", type=click.Choice(list(_SORTS)), default="name", show_default=True, help="Sort by it."
)
@nats_url_option
def top(chosen: FunctionFilter, every_s: float, sort: str, nats_url: str | None) -> None:
    """Show every function with its load, and keep the figures current.

    MSG/S, ERRORS, P50 and P99 are those of the last ten seconds on all hosts together, as in
    `runtime ls`. LOAD has a bar for the messages of each interval. Keys: q or Ctrl-C ends; n, m, e,
    t, p, d sort; r reverses; arrows scroll. It needs a terminal.
    """
    if not (sys.stdin.isatty() and obeys_escapes(sys.stdout)):
        exit_with_nothing_done("runtime top needs a terminal; elsewhere use `runtime ls --json`")
    monitor = Monitor(
        chosen, Screen(show_server(nats_url).removeprefix("nats://"), _SORTS[sort]), every_s
    )
    try:
        run(nats_url, monitor.run)
    except KeyboardInterrupt:
        raise SystemExit(ExitCode.DONE) from None  # One of the ways to end it.


class Monitor:
    """Reads the figures periodically and draws the screen, also after each key.

    Args:
        chosen: the functions to show.
        screen: the state of the screen.
        every_s: seconds between two readings.
    """

    def __init__(self, chosen: FunctionFilter, screen: Screen, every_s: float) -> None:
        self._chosen = chosen
        self._screen = screen
        self._every_s = every_s
        self._views: Sequence[FunctionView] = ()
        self._history = RateHistory()
        self._console = Console(highlight=False)
        self._ended = asyncio.Event()
        self._read_at = ""

    async def run(self, broker: Broker) -> None:
        """Show the screen until a key ends it."""
        # Before the screen is taken: what fails here is told on the user's own lines.
        await self._read(broker)
        loop = asyncio.get_running_loop()
        with (
            Live(console=self._console, screen=True, auto_refresh=False) as live,
            keys_pressed(sys.stdin.fileno(), lambda key: self._press(key, live)),
        ):
            loop.add_signal_handler(signal.SIGWINCH, self._draw, live)
            reading = asyncio.create_task(self._keep_reading(broker, live))
            self._draw(live)
            try:
                await self._wait_for_end(reading)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                loop.remove_signal_handler(signal.SIGWINCH)

    async def _wait_for_end(self, reading: "asyncio.Task[None]") -> None:
        ended = asyncio.create_task(self._ended.wait())
        await asyncio.wait({ended, reading}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if reading.done():
            await reading

    async def _keep_reading(self, broker: Broker, live: Live) -> None:
        loop = asyncio.get_running_loop()
        while True:
            next_s = loop.time() + self._every_s
            try:
                await self._read(broker)
                self._screen.trouble = ""
            except (Unavailable, ApiError) as failure:
                self._screen.trouble = self._say(failure, broker)
            self._draw(live)
            await asyncio.sleep(max(0.0, next_s - loop.time()))

    async def _read(self, broker: Broker) -> None:
        found = await find_functions(broker)
        chosen = self._chosen
        self._views = [
            each for each in found if chosen.takes(each.function, each.kind, each.service)
        ]
        self._history.add(self._views, asyncio.get_running_loop().time())
        self._read_at = datetime.now().astimezone().strftime("%H:%M:%S")

    def _say(self, failure: Unavailable | ApiError, broker: Broker) -> str:
        if not broker.is_connected:
            trouble = "NATS is away, waiting for it"
        elif isinstance(failure, ApiError):
            trouble = f"JetStream refused: {failure.description}"
        else:
            trouble = "JetStream does not answer"
        return f"{trouble}; the figures are of {self._read_at}"

    def _press(self, key: str, live: Live) -> None:
        rows = len(rows_of(self._views, folds=self._chosen.folds))
        if self._screen.press(key, rows, self._console.height):
            self._ended.set()
        self._draw(live)

    def _draw(self, live: Live) -> None:
        width, height = os.get_terminal_size(sys.stdout.fileno())
        rows = rows_of(self._views, folds=self._chosen.folds)
        live.update(
            self._screen.render(
                self._views,
                rows,
                self._history,
                width=width,
                height=height,
                clock=self._read_at,
            ),
            refresh=True,
        )
