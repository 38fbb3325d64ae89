"""CEL expressions over a device's message, bounded in length and loops.

An expression cannot be interrupted: evaluate those of tenants by `functions.domain.evaluation`, in
a process that can be stopped. Measured on one message: 22 regular expressions took 6.4 s, a list of
110 payloads of 700 values 53 ms, nested loops over 4,000 numbers 5 s, so loops are bounded too; an
ordinary filter takes 1 µs and the conversion of a message 1.3 µs for each of its values.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from functions.domain.cel_engine import cel
from functions.domain.expression_faults import (
    find_call,
    find_variable,
    place,
    shown,
    syntax_fault,
)

MAX_LENGTH = 1024
MAX_LOOPING_LENGTH = 256
MAX_LOOPED_VALUES = 256
_GAP = r"(?:\s|//[^\n]*)*"
_LOOP = re.compile(rf"\.{_GAP}(?:all|exists|exists_one|existsOne|filter|map){_GAP}\({_GAP}(\w*)")
_NOT_IN_LOOPS = re.compile(rf"\.{_GAP}(?:map|matches){_GAP}\(")
_OPERATOR = re.compile(r"[_@!?-].*")
FUNCTIONS = frozenset(
    {"contains", "endsWith", "matches", "size", "startsWith", "type", "dyn"}
    | {"bytes", "double", "duration", "int", "string", "timestamp", "uint"}
    | {"getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"}
    | {"getHours", "getMinutes", "getSeconds", "getMilliseconds"}
)
"""The functions that the engine has, beside operators and loops."""

SAMPLE: Mapping[str, Any] = {
    "payload": {"site_id": "site", "metrics": {}},
    "metrics": {},
    "topic": "tenant/t/device/d/telemetry",
    "tenant_id": "t",
    "device_id": "d",
    "msg_type": "telemetry",
}
"""A message's variables, as in a sample message."""


class EvaluationFailed(ValueError):  # noqa: N818 - names what happened
    """An expression fails on a message. The text holds no part of the message.

    Attributes:
        detail: what the engine says, which may hold parts of the message.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.detail = detail
        super().__init__(reason)


class MessageVariables:
    """The variables of a message, of which the engine gets each once, when one is used."""

    __slots__ = ("_context", "_given", "_refused", "_values")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._context = cel.Context()
        self._given: set[str] = set()
        self._refused: dict[str, str] = {}

    def give(self, names: Iterable[str]) -> cel.Context:
        """The engine's context, with those of the names that the message has.

        Raises:
            EvaluationFailed: the engine has no such value, such as an integer beyond 64 bits.
        """
        for name in names:
            if name in self._given or name not in self._values:
                continue
            if name not in self._refused:
                try:
                    self._context.add_variable(name, self._values[name])
                except (ValueError, TypeError, OverflowError, RecursionError) as failure:
                    self._refused[name] = str(failure)
                else:
                    self._given.add(name)
                    continue
            reason = "the message holds a value that expressions lack"
            raise EvaluationFailed(reason, self._refused[name])
        return self._context

    def count(self, names: Iterable[str]) -> int:
        """The number of these variables, and of all that is in them, at every depth."""
        return sum(1 + _count(self._values[name]) for name in names if name in self._values)


class Expression:
    """A compiled expression."""

    __slots__ = ("_execute", "_loops", "_names")

    def __init__(self, text: str) -> None:
        """Compile the expression.

        Raises:
            ValueError: `text` is not a CEL expression.
        """
        program = cel.compile(text)
        self._execute = program.execute
        self._loops = _LOOP.search(text) is not None
        self._names = tuple(program.variables())

    def evaluate(self, message: MessageVariables) -> Any:  # noqa: ANN401 - the author's choice
        """The expression's value for a message.

        Raises:
            LookupError: the expression reads a field that the message does not have.
            EvaluationFailed: it fails on this message.
        """
        if self._loops and message.count(self._names) > MAX_LOOPED_VALUES:
            raise EvaluationFailed(f"it loops, and the message has over {MAX_LOOPED_VALUES} values")
        try:
            return self._execute(message.give(self._names))
        except (LookupError, EvaluationFailed, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as failure:
            # The engine's own panics are no `Exception`.
            reason = f"it failed with {type(failure).__name__}"
            raise EvaluationFailed(reason, str(failure)) from failure


def check_expression(text: str, what: str, known: Mapping[str, Any] = SAMPLE) -> cel.Program:
    """Check an expression before it is stored. Evaluates nothing.

    Args:
        text: the expression.
        what: its name in messages, such as "a payload filter".
        known: the variables that it may use, with the values of a sample message.

    Raises:
        ValueError: it cannot be used; the text is one sentence for its author, with the line and
            column of the fault and what is expected there.
    """
    if not text.strip() or len(text) > MAX_LENGTH:
        raise ValueError(f"{what} has 1 to {MAX_LENGTH} characters")
    bound = check_loops(text, what)
    try:
        program = cel.compile(text)
    except Exception as failure:
        fault = syntax_fault(failure)
        told = f": {fault}" if fault else ""
        raise ValueError(f"{what} is not a CEL expression{told}") from failure
    if unknown := set(program.variables()).difference(bound, known):
        told = _told(text, find_variable(text, unknown))
        raise ValueError(f"{what} may use {', '.join(known)} only{told}")
    if lacking := {name for name in program.functions() if _is_lacking(name)}:
        told = _told(text, find_call(text, lacking))
        raise ValueError(f"{what} calls a function that CEL lacks{told}")
    return program


def evaluate_sample(program: cel.Program, known: Mapping[str, Any] = SAMPLE) -> Any:  # noqa: ANN401 - the author's choice
    """The value of a checked expression for a sample message, if it has one there.

    Raises:
        LookupError: the sample lacks a field that a message may have, the expression fails, or it
            has regular expressions, which could take seconds.
        ValueError: it calls a function with a number of arguments that CEL lacks.
    """
    if "matches" in program.functions():
        raise LookupError
    try:
        return program.execute(dict(known))
    except Exception as failure:
        if isinstance(failure, RuntimeError) and "Undefined variable or function" in str(failure):
            raise ValueError("calls a function that CEL lacks") from failure
        raise LookupError from failure


def check_loops(text: str, what: str, *, placed: bool = True) -> set[str]:
    """Refuse loops that could take long. Returns the names they bind: x in `xs.all(x, x > 0)`.

    Args:
        text: the expression, or several.
        what: its name in messages.
        placed: the messages say where in `text` the fault is.

    Raises:
        ValueError: the text is one sentence for its author.
    """
    loops = list(_LOOP.finditer(text))
    if len(loops) > 1:
        at = f": {place(text, loops[1].start())}" if placed else ""
        raise ValueError(f"{what} holds at most one of all, exists, exists_one and filter{at}")
    slow = _NOT_IN_LOOPS.search(text) if loops else None
    if slow or (loops and len(text) > MAX_LOOPING_LENGTH):
        at = f": {place(text, slow.start())}" if slow and placed else ""
        raise ValueError(
            f"{what} that loops has up to {MAX_LOOPING_LENGTH} characters, and neither "
            f"map nor matches{at}"
        )
    return {loop[1] for loop in loops}


def _is_lacking(name: str) -> bool:
    return name not in FUNCTIONS and _OPERATOR.fullmatch(name) is None


def _told(text: str, found: tuple[int, str] | None) -> str:
    return "" if found is None else f": {place(text, found[0])}: {shown(found[1])}"


def variables_of(
    payload: Any,  # noqa: ANN401 - whatever a device sends
    *,
    topic: str,
    tenant_id: str,
    device_id: str,
    msg_type: str,
) -> dict[str, Any]:
    """The variables of a message."""
    metrics = payload.get("metrics") if isinstance(payload, dict) else None
    return {
        "payload": payload,
        "metrics": metrics if isinstance(metrics, dict) else {},
        "topic": topic,
        "tenant_id": tenant_id,
        "device_id": device_id,
        "msg_type": msg_type,
    }


def _count(value: object) -> int:
    """The number of members of all lists and objects in `value`, at every depth."""
    if not isinstance(value, dict | list):
        return 0
    members = value.values() if isinstance(value, dict) else value
    return len(value) + sum(map(_count, members))


__all__ = [
    "MAX_LENGTH",
    "SAMPLE",
    "EvaluationFailed",
    "Expression",
    "MessageVariables",
    "check_expression",
    "check_loops",
    "evaluate_sample",
    "variables_of",
]
