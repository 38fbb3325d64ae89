"""Binding of a function to a subject of a micro service: a request in, its answer out."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.broker.micro import Answer, MicroEndpoint
from runtime.dispatch import Dispatcher
from runtime.errors import NoAnswer, PayloadError, Reject, RequestFailed, Retry
from runtime.loader import Function
from runtime.message import Message
from runtime.observe.failures import FailureLog
from runtime.observe.metrics import FunctionMetrics
from runtime.resource.outage import is_outage
from runtime.safe_text import line_of, seconds_of, status_of, text_of
from runtime.time_limit import TimeLimitExceeded

RETRY_AFTER_S = 2


def endpoint(
    dispatcher: Dispatcher, metrics: FunctionMetrics, failures: FailureLog
) -> MicroEndpoint:
    """Build the micro-service endpoint that runs a function."""
    function = dispatcher.function
    binding = function.spec.endpoint
    if binding is None:
        raise ValueError(f"{function.name} is not bound to an endpoint")

    async def handle(message: Message) -> Answer:
        began_s = time.perf_counter()
        try:
            answer = Answer(await dispatcher.run_request(message))
            metrics.count("answered")
        except Exception as failure:  # noqa: BLE001 - whatever a function raises becomes an answer
            answer = _refuse(failure, failures)
            metrics.count("refused" if answer.error and answer.error[0] < 500 else "failed")  # noqa: PLR2004 - HTTP's border between the caller's fault and ours
        metrics.observe(time.perf_counter() - began_s)
        metrics.timeouts = dispatcher.timeouts
        return answer

    return MicroEndpoint(
        name=function.name,
        subject=binding.subject,
        queue_group=binding.queue_group or None,
        metadata=endpoint_metadata(function),
        handle=handle,
        concurrency=function.spec.concurrency,
        max_waiting=binding.max_waiting,
    )


def endpoint_metadata(function: Function) -> dict[str, str]:
    """The endpoint's description and HTTP exposure, as metadata for the HTTP gateway."""
    binding = function.spec.endpoint
    if binding is None:
        return {}
    metadata = {}
    if description := binding.description or function.description:
        metadata["description"] = description
    if http := binding.http:
        metadata |= {
            "http.method": http.method,
            "http.path": http.path,
            "http.auth": http.auth,
            "http.status": str(http.status),
        }
    return metadata


@dataclass(frozen=True, slots=True)
class Refusal:
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

    def answer(self, event_id: str) -> Answer:
        """The answer that the caller gets."""
        body = json.dumps({"code": self.code, "detail": self.detail, "event_id": event_id}).encode()
        return Answer(body, headers=self.headers, error=(self.status, self.code))


def refusal_of(failure: Exception) -> Refusal:  # noqa: PLR0911 - one for each kind
    """What the caller of an endpoint is told about a failed call."""
    match failure:
        case Reject():
            reason = text_of(failure.reason)
            return Refusal(status_of(failure.status), line_of(failure.code), reason)
        case PayloadError():
            return Refusal(422, "PAYLOAD_INVALID", failure.reason)
        case RequestFailed():
            status, code = status_of(failure.code, 502), line_of(failure.description)
            return Refusal(status, code, "an endpoint it asked refused")
        case TimeLimitExceeded():
            return Refusal(504, "TIMEOUT", "the function took too long")
        case Retry():
            wait_s = max(1, round(seconds_of(failure.delay_s) or RETRY_AFTER_S))
            after = {"Retry-After": str(wait_s)}
            return Refusal(503, "TRY_AGAIN", "not now, try again", after)
        case _ if is_outage(failure) or isinstance(failure, NoAnswer):
            after = {"Retry-After": str(RETRY_AFTER_S)}
            return Refusal(503, "UNAVAILABLE", "a server that this needs is away", after)
        case _:
            return Refusal(500, "INTERNAL", "the function failed", is_defect=True)


def _refuse(failure: Exception, failures: FailureLog) -> Answer:
    """An error answer that tells the caller what it may know, and the log the rest."""
    refusal, event_id = refusal_of(failure), secrets.token_hex(8)
    if refusal.status >= 500:  # noqa: PLR2004 - HTTP's border between the caller's fault and ours
        failures.refused(
            failure,
            status=refusal.status,
            code=refusal.code,
            event_id=event_id,
            is_defect=refusal.is_defect,
        )
    return refusal.answer(event_id)
