"""`runtime` by a wall clock that is wrong: `python -m tests.fault.skewed serve …`.

The file that CLOCK_FILE names holds by how many seconds the clock is ahead, and may change at any
time. What is moved is the time of day as Python code sees it, in the host, its functions and the
libraries they use; durations are measured by the monotonic clock, which no setting of a real
clock moves either. The clock of the machine stays as it is, and with it that of the servers.
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
    """What the original class has made is of the class that stands in for it."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _datetime)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, _datetime)


class _Datetime(_datetime, metaclass=_Kind):
    # Makes objects of the original class, as libraries look at the type of what they are given.
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
    _move()  # Before anything is imported that would keep the original.
    from runtime.cli import main

    main()
