"""The version of a function that runs in this process, and its last reload, for discovery."""

import json
from datetime import UTC, datetime

from runtime.loader import Function
from runtime.safe_text import line_of

LONGEST_ERROR = 500


class FunctionStatus:
    """The running version of one function; a reload changes it while discovery answers.

    Attributes:
        function: the running version.
        since: when this version began to run in this process.
        reloaded_at: when the last reload ended; None when there was none.
        reload_error: why the last reload failed and the version before it still runs; else empty.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.since = datetime.now(UTC)
        self.reloaded_at: datetime | None = None
        self.reload_error = ""
        self._schemas = _schemas_of(function)

    def swapped(self, function: Function) -> None:
        """Show a new version, without the error of an earlier reload."""
        if function is not self.function:
            self.function, self._schemas = function, _schemas_of(function)
            self.since = datetime.now(UTC)
        self.reloaded_at, self.reload_error = datetime.now(UTC), ""

    def failed(self, error: str) -> None:
        """Show why a new version does not run; the version before it still does."""
        self.reloaded_at, self.reload_error = datetime.now(UTC), self.shown(error)

    @staticmethod
    def shown(error: str) -> str:
        """An error as `reload_error` shows it: one line of a bounded length."""
        return line_of(error, LONGEST_ERROR)

    def as_metadata(self) -> dict[str, str]:
        """Handler, version and last reload; values are strings."""
        found = {
            "function": self.function.name,
            "handler": self.function.spec.handler,
            "code_version": self.function.code_version,
            "version_since": _stamp(self.since),
        }
        if self.reloaded_at is not None:
            found["reloaded_at"] = _stamp(self.reloaded_at)
        if self.reload_error:
            found["reload_error"] = self.reload_error
        return found

    def schemas(self) -> dict[str, str]:
        """The JSON schemas of payload and reply, as metadata."""
        return self._schemas


def _schemas_of(function: Function) -> dict[str, str]:
    found = {"schema.request": function.request_schema, "schema.response": function.response_schema}
    return {
        name: json.dumps(schema, separators=(",", ":"))
        for name, schema in found.items()
        if schema is not None
    }


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


__all__ = ["FunctionStatus"]
