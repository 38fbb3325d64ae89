"""Payload filters: CEL expressions that select the messages of a topic for a route."""

import re
import time
from typing import Any

import cel

MAX_LENGTH = 1024
# An expression cannot be interrupted, and blocks the event loop while it runs. A loop evaluates its
# body once per value, so both the expression's length and the number of values are bounded.
# Measured: nested loops over the 4,000 numbers that a message holds took 5 s; within these bounds
# the worst expression found took 0.4 s, and without a loop 1.6 s (30 regular expressions, each
# compiled anew).
MAX_LOOPING_LENGTH = 256
MAX_LOOPED_VALUES = 256
# An ordinary evaluation takes 30 µs.
BUDGET_S = 0.1
REST_S = 60.0
_GAP = r"(?:\s|//[^\n]*)*"
_LOOP = re.compile(rf"\.{_GAP}(?:all|exists|exists_one|existsOne|filter|map){_GAP}\({_GAP}(\w*)")
_NOT_IN_LOOPS = re.compile(rf"\.{_GAP}(?:map|matches){_GAP}\(")
_SAMPLE: dict[str, Any] = {
    "payload": {"site_id": "site", "metrics": {}},
    "metrics": {},
    "topic": "tenant/t/device/d/telemetry",
    "tenant_id": "t",
    "device_id": "d",
    "msg_type": "telemetry",
}


class PayloadFilter:
    """A compiled filter.

    Variables: `payload`, `metrics`, `topic`, `tenant_id`, `device_id` and `msg_type`. A filter that
    used more than `BUDGET_S` of CPU time is not evaluated for `REST_S`, since every other message
    waits while it runs.
    """

    __slots__ = ("_execute", "_loops", "_names", "_rests_until_s")

    def __init__(self, expression: str) -> None:
        """Compile the expression.

        Raises:
            ValueError: `expression` is not a CEL expression.
        """
        program = cel.compile(expression)
        self._execute = program.execute
        self._loops = _LOOP.search(expression) is not None
        self._rests_until_s = 0.0
        # CEL converts each value passed, used or not: all six take 32 µs, the metrics alone 11.
        self._names = tuple(_SAMPLE.keys() & set(program.variables()))

    def accepts(self, variables: dict[str, Any]) -> bool:
        """Whether the filter accepts the message.

        Raises:
            LookupError: the filter reads a field that the message does not have.
            ValueError: the filter fails on this message, returns no boolean, or is suspended.
        """
        if self._rests_until_s and time.monotonic() < self._rests_until_s:
            raise ValueError(f"the filter took more than {BUDGET_S} s and rests for {REST_S:g} s")
        given = {name: variables[name] for name in self._names}
        if self._loops and _count(given) > MAX_LOOPED_VALUES:
            raise ValueError(
                f"the filter loops, and the message has over {MAX_LOOPED_VALUES} values"
            )
        # CPU time of this thread: time lost to a busy or sleeping machine does not count.
        began_s = time.thread_time()
        try:
            result = self._execute(given)
        except LookupError:
            raise
        except Exception as failure:
            raise ValueError(f"the filter failed with {type(failure).__name__}") from failure
        finally:
            if time.thread_time() - began_s > BUDGET_S:
                self._rests_until_s = time.monotonic() + REST_S
        if not isinstance(result, bool):
            raise ValueError("the filter gave neither true nor false")  # noqa: TRY004 - the expression's fault
        return result


def _count(value: object) -> int:
    """The number of members of all lists and objects in `value`, at every depth."""
    if not isinstance(value, dict | list):
        return 0
    members = value.values() if isinstance(value, dict) else value
    return len(value) + sum(map(_count, members))


def validate_filter(expression: str) -> None:
    """Check a filter before it is stored.

    Raises:
        ValueError: the filter cannot be used; the text is one sentence for its author.
    """
    if not expression.strip() or len(expression) > MAX_LENGTH:
        raise ValueError(f"a payload filter has 1 to {MAX_LENGTH} characters")
    bound = _check_loops(expression)
    try:
        program = cel.compile(expression)
    except Exception as failure:
        raise ValueError("the payload filter is not a CEL expression") from failure
    if not set(_SAMPLE).issuperset(set(program.variables()).difference(bound)):
        raise ValueError(f"a payload filter may use {', '.join(_SAMPLE)} only")
    try:
        result = program.execute(_SAMPLE)
    except RuntimeError as failure:
        if "Undefined variable or function" in str(failure):
            raise ValueError("the payload filter calls a function that CEL lacks") from failure
    except Exception:  # noqa: BLE001 - the sample lacks a field that a message may have
        return
    else:
        if not isinstance(result, bool):
            raise ValueError("a payload filter must return true or false")  # noqa: TRY004 - as above


def _check_loops(expression: str) -> set[str]:
    """Refuse loops that could take long. Returns the names they bind: x in `xs.all(x, x > 0)`."""
    bound: list[str] = _LOOP.findall(expression)
    if len(bound) > 1:
        raise ValueError("a payload filter holds at most one of all, exists, exists_one and filter")
    if bound and (_NOT_IN_LOOPS.search(expression) or len(expression) > MAX_LOOPING_LENGTH):
        raise ValueError(
            f"a payload filter that loops has up to {MAX_LOOPING_LENGTH} characters, and neither "
            "map nor matches"
        )
    return set(bound)


__all__ = ["MAX_LENGTH", "PayloadFilter", "validate_filter"]
