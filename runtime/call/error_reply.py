"""What the caller of an endpoint is told about a failed call. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.call.time_limit import TimeLimitExceeded
from runtime.errors import NoAnswer, PayloadError, Reject, RequestFailed, Retry
from runtime.resource.outage import is_outage
from runtime.safe_text import line_of, seconds_of, status_of, text_of

RETRY_AFTER_S = 2


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """What the caller of a failed endpoint may know.

    Attributes:
        status: HTTP status.
        code: short name of the failure.
        detail: one sentence; never an exception's text, except that of a `Reject`.
        headers: further headers of the answer.
        is_defect: whether the function has a defect.
    """

    status: int
    code: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    is_defect: bool = False

    def body(self, event_id: str) -> bytes:
        """The payload of the reply; the log names the same event."""
        content = {"code": self.code, "detail": self.detail, "event_id": event_id}
        return json.dumps(content).encode()


def error_reply_of(failure: Exception) -> ErrorReply:  # noqa: PLR0911 - one for each kind
    """What the caller of an endpoint is told about a failed call."""
    match failure:
        case Reject():
            reason = text_of(failure.reason)
            return ErrorReply(status_of(failure.status), line_of(failure.code), reason)
        case PayloadError():
            return ErrorReply(422, "PAYLOAD_INVALID", failure.reason)
        case RequestFailed():
            status, code = status_of(failure.code, 502), line_of(failure.description)
            return ErrorReply(status, code, "an endpoint it asked refused")
        case TimeLimitExceeded():
            return ErrorReply(504, "TIMEOUT", "the function took too long")
        case Retry():
            asked_s = failure.delay_s if failure.at_least_s is None else failure.at_least_s
            wait_s = max(1, round(seconds_of(asked_s) or RETRY_AFTER_S))
            after = {"Retry-After": str(wait_s)}
            return ErrorReply(503, "TRY_AGAIN", "not now, try again", after)
        case _ if is_outage(failure) or isinstance(failure, NoAnswer):
            after = {"Retry-After": str(RETRY_AFTER_S)}
            return ErrorReply(503, "UNAVAILABLE", "a server that this needs is away", after)
        case _:
            return ErrorReply(500, "INTERNAL", "the function failed", is_defect=True)
