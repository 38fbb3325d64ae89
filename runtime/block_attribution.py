"""Names the function that blocks the event loop, and keeps the NATS connection alive meanwhile."""

import sys
import threading
from collections.abc import Mapping
from types import CodeType

from runtime.binding.in_progress import InProgressTicker
from runtime.broker.connection import Broker
from runtime.loader import Function


class BlockAttribution:
    """Finds the function whose code is on the loop's stack. Created on the loop's thread.

    Args:
        functions: the functions of this process, by name.

    Attributes:
        connected: connection and ticker, when the process has connected.
    """

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self.connected: tuple[Broker, InProgressTicker] | None = None
        self._loop_thread = threading.get_ident()
        self.follow(functions)

    def follow(self, functions: Mapping[str, Function]) -> None:
        """Know these versions of the functions from now on."""
        codes: dict[CodeType | str, str] = {}
        for name, function in functions.items():
            if code := getattr(function.handler, "__code__", None):
                codes |= {code: name, code.co_filename: name}
        # Replaced, not changed: the watchdog's thread may be reading.
        self._codes, self._functions = codes, dict(functions)

    def block_limit_s(self, function: str) -> float | None:
        """How long a block of the loop by an isolated function may last now; None for no limit."""
        found = self._functions.get(function)
        return found.spec.block_limit_s if found else None

    def running(self) -> str:
        """The name of the function whose code is on the loop's stack now, for a warning."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the only door there is
        module = ""
        while frame is not None:
            code = frame.f_code
            if name := self._codes.get(code):
                return name
            # Any function of the module when the handler itself is not on the stack, as when
            # decorated.
            module = module or self._codes.get(code.co_filename, "")
            frame = frame.f_back
        return module

    def keep_alive(self, blocked_s: float) -> None:
        """Keep connection and held messages alive during a block; called by another thread."""
        if self.connected is not None:
            broker, ticker = self.connected
            function = self._functions.get(self.running())
            is_at_work = function is not None and blocked_s < function.spec.timeout
            ticker.keep_alive(broker, is_at_work=is_at_work)
