"""Renders log lines of several processes, as the console of a host does."""

import sys
from collections.abc import Mapping

import click

from runtime.cli.printing import print_json
from runtime.log_stream.log_protocol import ProcessLines
from runtime.observe.console import ConsoleRenderer, printable

_TEXT_FIELDS = ("event", "level", "timestamp", "logger", "function")


class LinePrinter:
    """Prints each line once, with the name of its process as soon as there are several.

    Args:
        as_json: print each line as a JSON object, with `host`, `pid` and `worker`.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._render = ConsoleRenderer(lambda: sys.stdout)
        self._printed: dict[str, int] = {}
        self._places: set[str] = set()

    @property
    def places(self) -> int:
        """The number of processes that have answered."""
        return len(self._places)

    def meet(self, message: ProcessLines) -> None:
        """Take note of a process."""
        self._places.add(message.place)

    def is_new(self, message: ProcessLines, number: int) -> bool:
        """Whether a line was not printed yet; remembers it as printed.

        After a lost connection a process may send lines again.
        """
        if number <= self._printed.get(message.feed, 0):
            return False
        self._printed[message.feed] = number
        return True

    def show(self, message: ProcessLines, entry: Mapping[str, object]) -> None:
        """Print one line."""
        if self._as_json:
            place = {"host": message.host, "pid": message.pid, "worker": message.worker}
            print_json({**entry, **{name: text for name, text in place.items() if text}})
            return
        event = dict(entry)
        for name in _TEXT_FIELDS:
            if name in event:
                event[name] = str(event[name])
        if len(self._places) > 1:
            event["on"] = printable(message.place)
        click.echo(self._render(None, "", event))

    def show_dropped(self, message: ProcessLines) -> None:
        """Say how many lines of a flood are missing."""
        if self._as_json:
            print_json({"dropped": message.dropped, "host": message.host, "pid": message.pid})
        elif message.dropped:
            lines = "1 line" if message.dropped == 1 else f"{message.dropped:,} lines"
            click.echo(f"… {lines} of {printable(message.place)} left out: too many to show")
