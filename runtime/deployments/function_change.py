"""What a reload did to one function, as a value that also crosses to the supervisor."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from runtime.loader import LoadFailure

STREAM = "stream "
"""The name of a stream's change begins with it; no function's name has a space."""

Action = Literal["swapped", "rebound", "started", "stopped", "mended", "failed"]


@dataclass(frozen=True, slots=True)
class FunctionChange:
    """What a reload did to one function.

    Attributes:
        name: the function's name; `stream NAME` for a stream that the server refused to change;
            `manifests` for a mistake that is of no function.
        action: `swapped`: the dispatcher calls the new version, and pulling went on. `rebound`: the
            binding was drained and another was started; a service ended and began again. `started`
            and `stopped`: the function was added or removed. `mended`: the version that runs is on
            disk again, after a failure; of a stream or the manifests: the mistake is gone.
            `failed`: the last good version runs on.
        from_version: the code version before; empty when there was none.
        to_version: the code version that runs now; empty when there is none.
        elapsed_ms: from the begin of `Host.apply` to the end of this change.
        error: why the change failed; None unless `action` is `failed`.
    """

    name: str
    action: Action
    from_version: str
    to_version: str
    elapsed_ms: float
    error: LoadFailure | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "FunctionChange":
        """The change whose `as_dict` was given."""
        error = fields["error"]
        return cls(**{**fields, "error": LoadFailure(**error) if error else None})


__all__ = ["STREAM", "Action", "FunctionChange"]
