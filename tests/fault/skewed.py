"""`runtime` with a wrong wall clock: `python -m tests.fault.skewed serve …`.

The file in CLOCK_FILE holds the number of seconds by which the clock is ahead, and may change at
any time. This module moves the time of day that Python code sees, in the host, its functions and
the libraries. Durations use the monotonic clock, which setting a real clock does not move either.
The machine's clock, and so the servers' clock, is unchanged.
"""

import datetime
import os
import time
from pathlib import Path
from typing import Any

_FILE = Path(os.environ["CLOCK_FILE"])
_datetime = datetime.datetime
_time_ns = time.time_ns
_NS = 1_000_000_000


def _skewed_ns() -> int:
    return _time_ns() + int(_FILE.read_text() or 0) * _NS


class _Kind(type):
    """Counts an object of the original class as an instance of the replacement."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _datetime)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, _datetime)


class _Datetime(_datetime, metaclass=_Kind):
    # Makes objects of the original class, since libraries check the type.
    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        return _datetime(*arguments, **named)

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return _datetime.fromtimestamp(_skewed_ns() / _NS, tz)


def _move() -> None:
    time.time_ns = _skewed_ns
    time.time = lambda: _skewed_ns() / _NS
    datetime.datetime = _Datetime  # type: ignore[misc]


if __name__ == "__main__":
    _move()  # Replace the clock before any import that would keep a reference to the original.
    from runtime.cli import main

    main()
