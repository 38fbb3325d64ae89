"""Progress of a start: on a terminal one line shows the host's latest own entry.

The screen at the end of the start repeats these entries. Entries of functions and warnings are
logged normally.
"""

import sys

import structlog
from rich.cells import set_cell_size
from structlog.typing import EventDict, WrappedLogger

from runtime.observe import stderr
from runtime.observe.console import has_colors, is_of_the_host, join_words, terminal_width


class Progress:
    """A structlog processor that drops the host's INFO entries between `begin` and `end`."""

    def __init__(self) -> None:
        self._is_on = False
        self._is_shown = False

    def begin(self, *, is_shown: bool) -> None:
        """Start to drop entries; if `is_shown`, show each as the progress line."""
        self._is_on, self._is_shown = True, is_shown

    def end(self) -> None:
        """Stop dropping entries."""
        self._is_on = False
        if self._is_shown:
            stderr.erase_passing()

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Pass an entry on, or drop it.

        Raises:
            structlog.DropEvent: the entry is dropped.
        """
        if not self._is_on or event.get("level") != "info" or not is_of_the_host(event):
            return event
        if self._is_shown:
            width = terminal_width(sys.stderr) - 1
            text = set_cell_size(f"  {join_words(event)}", width).rstrip()
            stderr.show_in_passing(f"\x1b[2m{text}\x1b[0m" if has_colors(sys.stderr) else text)
        raise structlog.DropEvent
