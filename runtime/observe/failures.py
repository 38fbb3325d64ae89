"""Logs a function's failures: each attempt once, and only a number for a flood."""

from collections.abc import Hashable
from typing import Any

from runtime.dispatch import Dead, Later
from runtime.errors import PayloadError, Reject, Retry
from runtime.message import Message
from runtime.observe.flood_gate import WINDOW_S, FloodGate
from runtime.observe.logs import get_logger
from runtime.safe_text import describe, name_of
from runtime.user_frames import exc_info_of, where_of


class FailureLog:
    """Logs the failures of one function.

    A failed attempt is a WARNING with its error and the function's own line, and a DEBUG line with
    its traceback. The last attempt is an ERROR with its traceback. A `Retry` or `Reject` of the
    function has no traceback.

    Attributes:
        max_attempts: the most attempts of a message; a reload may change it.
    """

    def __init__(self, function: str, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self._log = get_logger("runtime.failures").bind(function=function)
        self._gate = FloodGate(self._summarize)

    def failed(self, message: Message, later: Later) -> None:
        """Log a failed attempt that another one follows."""
        fields = {
            **_origin(message),
            "attempt": f"{message.attempt} of {later.attempts or self.max_attempts}",
            "again_in_s": round(later.delay_s, 1),
        }
        if later.note:
            fields["note"] = later.note
        if isinstance(later.failure, Retry) or later.error_type == Retry.__name__:
            if later.note or self._gate.admits((Retry.__name__, "asked for")):
                write = self._log.warning if later.note else self._log.info
                write("The function asked for another attempt", reason=later.reason, **fields)
            return
        if self._gate.admits((later.error_type, "failed")):
            error = _error(later.error_type, later.reason)
            self._log.warning("An attempt failed", error=error, **_place(later.place()), **fields)
        if later.failure is not None:
            self._log.debug("A failed attempt's traceback", **_traceback(later.failure))

    def given_up(self, message: Message, dead: Dead) -> None:
        """Log that the message became a dead letter."""
        sentence = "Message given up to the dead letters"
        if not self._gate.admits((dead.code, "given up")):
            return
        fields = {**_origin(message), "code": dead.code}
        if isinstance(dead.failure, Reject | PayloadError) or not dead.traceback:
            self._log.warning(sentence, reason=dead.reason, **fields)
            return
        fields["attempt"] = f"{message.attempt} of {dead.attempts or self.max_attempts}"
        fields["error"] = _error(dead.error_type, dead.reason)
        fields |= _place(dead.place())
        if isinstance(dead.failure, Retry):
            self._log.error(sentence, **fields)
        elif dead.failure is not None:
            self._log.error(sentence, **_traceback(dead.failure), **fields)
        else:
            self._log.error(sentence, exception=dead.traceback, **fields)

    def refused(
        self, failure: Exception, *, status: int, code: str, event_id: str, is_defect: bool
    ) -> None:
        """Log that an endpoint answered a request with an error."""
        fields = {
            "status": status,
            "code": code,
            "event_id": event_id,
            "error": _error(name_of(failure), describe(failure)),
            **_place(where_of(failure)),
        }
        sentence = "Request failed"
        if not self._gate.admits((name_of(failure), "refused")):
            # The caller got the event id, so the log must contain it.
            self._log.debug(sentence, **_traceback(failure), **fields)
        elif is_defect:
            self._log.error(sentence, **_traceback(failure), **fields)
        else:
            self._log.warning(sentence, **fields)
            self._log.debug("A failed request's traceback", **_traceback(failure))

    def crashed(self, failure: Exception, *, restarts: int, again_in_s: float) -> None:
        """Log that a service ended by an exception, and is restarted."""
        self._log.error(
            "Service crashed, it is started again",
            error=_error(name_of(failure), describe(failure)),
            **_place(where_of(failure)),
            restarts=restarts,
            again_in_s=round(again_in_s, 1),
            **_traceback(failure),
        )

    def flush(self) -> None:
        """Log the number of lines held back so far."""
        self._gate.flush()

    def _summarize(self, kind: Hashable, held_back: int) -> None:
        error, what = kind if isinstance(kind, tuple) else ("several kinds", "failed")
        field = "code" if what == "given up" else "error_type"
        self._log.warning(
            "More failures of this kind, which are not logged one by one",
            failures=held_back,
            within_s=WINDOW_S,
            **{field: error},
        )


class FailureLogs:
    """The failure logs of a host, one for each function."""

    def __init__(self) -> None:
        self._logs: dict[str, FailureLog] = {}

    def of(self, function: str, max_attempts: int = 1) -> FailureLog:
        """The failure log of a function."""
        if function not in self._logs:
            self._logs[function] = FailureLog(function, max_attempts)
        return self._logs[function]

    def flush(self) -> None:
        """Log the number of lines held back so far."""
        for each in self._logs.values():
            each.flush()


def _origin(message: Message) -> dict[str, Any]:
    return {"stream": message.stream, "sequence": message.sequence}


def _place(place: str) -> dict[str, str]:
    return {"where": place} if place else {}


def _traceback(failure: Exception) -> dict[str, Any]:
    """The function's part of the traceback; empty when the host raised the error."""
    exc_info = exc_info_of(failure)
    has_own = exc_info[2] is not None or failure.__cause__ is not None
    return {"exc_info": exc_info} if has_own else {}


def _error(error_type: str, text: str) -> str:
    return error_type if text == error_type else f"{error_type}: {text}"
