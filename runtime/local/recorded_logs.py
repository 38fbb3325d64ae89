"""Records what a function logs during a local call."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from runtime.observe.logs import redact

_OWN = "runtime"
_RECORD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the log, with secrets masked as in the host's log.

    Attributes:
        level: `debug`, `info`, `warning`, `error` or `critical`.
        text: the sentence.
        fields: the fields beside it; a traceback is the field `exception`.
    """

    level: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = " ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"{self.level}: {self.text}{' ' if shown else ''}{shown}"


class RecordedLogs:
    """Records `ctx.log` at every level, and the standard library's loggers at the level they have.

    Lines of the runtime's own loggers are left out.
    """

    def __init__(self) -> None:
        self._lines: list[LogLine] = []

    def logger(self, function: str) -> structlog.stdlib.BoundLogger:
        """The logger that becomes `ctx.log`."""
        made = structlog.wrap_logger(
            None,
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.format_exc_info,
                redact,
                self._record,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
            function=function,
        )
        return cast("structlog.stdlib.BoundLogger", made.bind())

    @contextmanager
    def recording(self) -> Iterator[list[LogLine]]:
        """Record into a new list, which the block gets."""
        self._lines = []
        handler = _Handler(self._lines)
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            yield self._lines
        finally:
            root.removeHandler(handler)

    def _record(self, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
        self._lines.append(_line(event))
        raise structlog.DropEvent


class _Handler(logging.Handler):
    """Records the lines of the standard library's loggers."""

    def __init__(self, lines: list[LogLine]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == _OWN:
            return
        try:
            event: EventDict = {"event": record.getMessage(), "level": record.levelname.lower()}
            event["logger"] = record.name
            extra = {key: value for key, value in vars(record).items() if key not in _RECORD_FIELDS}
            event.update(extra)
            if record.exc_info:
                event["exc_info"] = record.exc_info
            event = structlog.processors.format_exc_info(None, "", event)
            self._lines.append(_line(redact(None, "", event)))
        except Exception:  # noqa: BLE001 - logging must not end the work that logs
            self.handleError(record)


def _line(event: EventDict) -> LogLine:
    fields = dict(event)
    return LogLine(str(fields.pop("level", "info")), str(fields.pop("event", "")), fields)


__all__ = ["LogLine", "RecordedLogs"]
