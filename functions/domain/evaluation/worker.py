"""The process in which expressions are evaluated: answers requests on its standard input.

Two processes: the first one forks the second one, which evaluates. When an ask has used too much
processor time, or has crashed the engine, the kernel ends the second process; the first one hands
over the records that it has left in shared memory, says that the next ask was stopped, and forks
another one within milliseconds. A native engine cannot be interrupted in another way: it returns
to Python only at its end, and holds the interpreter's lock until then.

Frames, both ways: four bytes of length, then a value of `marshal`, as the host runs the same
interpreter. A request: (texts, messages, groups, seconds), where a group is (seconds, asks) and an
ask is (message, ((text, form), …)) by their numbers. The seconds are of processor time, of each
group and of all together. The reply: a record for each ask, in order; or fewer of them and `None`,
when one was stopped.
"""

import marshal
import mmap
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from functions.domain.evaluation.values import Outcome
from functions.domain.expression_values import as_json, as_key
from functions.domain.expressions import EvaluationFailed, Expression, MessageVariables

_MAX_EXPRESSION_CHARACTERS = 2_000_000
"""Compiled expressions are forgotten together beyond it; a small one has 1.5 kB, one of 1000
characters 33."""
_SHARED_BYTES = 262_144
_STOPPED = frozenset(
    {signal.SIGPROF, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE}
)
_LENGTH = struct.Struct("!I")
_INPUT, _OUTPUT, _ERRORS = 0, 1, 2
_DETAIL_CHARACTERS = 300

Record: TypeAlias = tuple[str, tuple[Any, ...], int, str, str, float]


def main() -> None:
    """Evaluate until the input ends, or is silent for a while.

    Arguments of the command: seconds of processor time of an ask, and seconds of silence.
    """
    stop_s, idle_s = (float(argument) for argument in sys.argv[-2:])
    results = _Results()
    while True:
        child = os.fork()
        if child == 0:
            _serve(results, stop_s, idle_s)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) not in _STOPPED:
            # The end of the input, or somebody else's signal, of which the host hears.
            sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
        results.flush()
        _write(_frame(None))


def _serve(results: "_Results", stop_s: float, idle_s: float) -> None:
    """Answer requests; ends the process."""
    # A native engine writes there when it fails, and nobody reads it: it would wait some day.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _ERRORS)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    compiled = CompiledExpressions()
    while (request := _read(idle_s)) is not None:
        texts, messages, groups, left_of_all_s = marshal.loads(request)  # noqa: S302 - of the host
        known = [MessageVariables(message) for message in messages]
        for allowed_s, asks in groups:
            left_s = allowed_s
            for message, steps in asks:
                if left_s <= 0 or left_of_all_s <= 0:
                    results.add((Outcome.OVER_BUDGET.value, (), 0, "", "", 0.0))
                    continue
                began_s = time.process_time()
                signal.setitimer(signal.ITIMER_PROF, stop_s)
                outcome = evaluate(compiled, known[message], steps, texts)
                signal.setitimer(signal.ITIMER_PROF, 0)
                spent_s = time.process_time() - began_s
                left_s -= spent_s
                left_of_all_s -= spent_s
                results.add((*outcome, spent_s))
        results.flush()
    os._exit(0)


def evaluate(
    compiled: "CompiledExpressions",
    message: MessageVariables,
    steps: tuple[tuple[int, str], ...],
    texts: Sequence[str],
) -> tuple[str, tuple[Any, ...], int, str, str]:
    """The record of one ask, without its time. Cannot be interrupted."""
    values: list[Any] = []
    for place, (text, form) in enumerate(steps):
        expression = compiled.get(texts[text])
        if expression is None:
            return Outcome.UNREADABLE.value, (), place, "it is not a CEL expression", ""
        try:
            value = _FORMS[form](expression.evaluate(message))
        except (LookupError, EvaluationFailed) as failure:
            if form != "key":
                return (*_failed(failure, place), _detail(failure))
            value = ""
        values.append(value)
        if value is False and form == "boolean":
            break
    return Outcome.DONE.value, tuple(values), 0, "", ""


def _failed(failure: Exception, place: int) -> tuple[str, tuple[Any, ...], int, str]:
    if isinstance(failure, LookupError):
        return Outcome.MISSING.value, (), place, "the message lacks a field that it reads"
    return Outcome.FAILED.value, (), place, str(failure)


def _detail(failure: Exception) -> str:
    if isinstance(failure, EvaluationFailed):
        return failure.detail[:_DETAIL_CHARACTERS]
    return str(failure.args[0])[:_DETAIL_CHARACTERS] if failure.args else ""


def _as_boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise EvaluationFailed("it gave neither true nor false")
    return value


_FORMS: Mapping[str, Callable[[Any], Any]] = {
    "boolean": _as_boolean,
    "json": as_json,
    "key": as_key,
}


class CompiledExpressions:
    """Expressions by their text, each compiled once."""

    def __init__(self) -> None:
        self._known: dict[str, Expression | None] = {}
        self._characters = 0

    def get(self, text: str) -> Expression | None:
        """The expression; None if the text is none."""
        if text in self._known:
            return self._known[text]
        if self._characters > _MAX_EXPRESSION_CHARACTERS:
            self._known.clear()
            self._characters = 0
        self._characters += len(text) + 50
        try:
            expression = Expression(text)
        except ValueError:
            expression = None
        self._known[text] = expression
        return expression


class _Results:
    """Records in memory that both processes have, so that a killed process leaves its own."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SHARED_BYTES)

    def add(self, record: Record) -> None:
        """Keep a record until the next `flush`."""
        frame = _frame(record)
        begin = _LENGTH.size + self._used()
        if begin + len(frame) > _SHARED_BYTES:
            self.flush()
            begin = _LENGTH.size
        if begin + len(frame) > _SHARED_BYTES:
            _write(frame)
            return
        self._memory[begin : begin + len(frame)] = frame
        self._set_used(begin + len(frame) - _LENGTH.size)

    def flush(self) -> None:
        """Send the records."""
        _write(self._memory[_LENGTH.size : _LENGTH.size + self._used()])
        self._set_used(0)

    def _used(self) -> int:
        used: int = _LENGTH.unpack_from(self._memory)[0]
        return used

    def _set_used(self, used: int) -> None:
        _LENGTH.pack_into(self._memory, 0, used)


def _frame(value: object) -> bytes:
    data = marshal.dumps(value)  # type: ignore[arg-type] # of its types alone
    return _LENGTH.pack(len(data)) + data


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(_OUTPUT, data) :]


def _read(idle_s: float) -> bytes | None:
    """The next request; None at the end of the input, or after too long a silence."""
    ready, _, _ = select.select([_INPUT], [], [], idle_s)
    header = _read_exactly(_LENGTH.size) if ready else None
    return None if header is None else _read_exactly(_LENGTH.unpack(header)[0])


def _read_exactly(count: int) -> bytes | None:
    parts: list[bytes] = []
    while count:
        part = os.read(_INPUT, min(count, 1_048_576))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


__all__ = ["CompiledExpressions", "evaluate", "main"]
