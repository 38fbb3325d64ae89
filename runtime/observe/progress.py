"""How a start goes on: on a terminal the host's own entries pass by in one line.

What they say stands on the screen that ends the start. Entries of functions and warnings stay.
"""

import sys

import structlog
from rich.cells import set_cell_size
from structlog.typing import EventDict, WrappedLogger

from runtime.observe import stderr
from runtime.observe.console import has_colors, is_of_the_host, join_words, terminal_width


class Progress:
    """A structlog processor that takes the host's INFO entries out between `begin` and `end`."""

    def __init__(self) -> None:
        self._is_on = False
        self._is_shown = False

    def begin(self, *, is_shown: bool) -> None:
        """Take entries out from now on, and show each in passing if so; not in worker processes."""
        self._is_on, self._is_shown = True, is_shown

    def end(self) -> None:
        """Let all entries through."""
        self._is_on = False
        if self._is_shown:
            stderr.erase_passing()

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """The entry, or nothing.

        Raises:
            structlog.DropEvent: it was taken out.
        """
        if not self._is_on or event.get("level") != "info" or not is_of_the_host(event):
            return event
        if self._is_shown:
            width = terminal_width(sys.stderr) - 1
            text = set_cell_size(f"  {join_words(event)}", width).rstrip()
            stderr.show_in_passing(f"\x1b[2m{text}\x1b[0m" if has_colors(sys.stderr) else text)
        raise structlog.DropEvent
