"""Binding of a function to a subject of a micro service: a request in, its answer out."""

import json
import secrets
import time
from collections.abc import Mapping

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
            answer = _refusal(failure, failures)
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


def _refusal(failure: Exception, failures: FailureLog) -> Answer:
    """An error answer that tells the caller what it may know, and the log the rest."""
    is_defect = False
    event_id = secrets.token_hex(8)
    headers: Mapping[str, str] = {}
    match failure:
        case Reject():
            status, code = status_of(failure.status), line_of(failure.code)
            detail = text_of(failure.reason)
        case PayloadError():
            status, code, detail = 422, "PAYLOAD_INVALID", failure.reason
        case RequestFailed():
            status, code = status_of(failure.code, 502), line_of(failure.description)
            detail = "an endpoint it asked refused"
        case TimeLimitExceeded():
            status, code, detail = 504, "TIMEOUT", "the function took too long"
        case Retry():
            status, code, detail = 503, "TRY_AGAIN", "not now, try again"
            headers = {
                "Retry-After": str(max(1, round(seconds_of(failure.delay_s) or RETRY_AFTER_S)))
            }
        case _ if is_outage(failure) or isinstance(failure, NoAnswer):
            status, code, detail = 503, "UNAVAILABLE", "a server that this needs is away"
            headers = {"Retry-After": str(RETRY_AFTER_S)}
        case _:
            status, code, detail = 500, "INTERNAL", "the function failed"
            is_defect = True
    if status >= 500:  # noqa: PLR2004 - HTTP's border between the caller's fault and ours
        failures.refused(failure, status=status, code=code, event_id=event_id, is_defect=is_defect)
    body = json.dumps({"code": code, "detail": detail, "event_id": event_id}).encode()
    return Answer(body, headers=headers, error=(status, code))
