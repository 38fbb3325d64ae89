"""Binding of a function to a subject of a micro service: a request in, its answer out."""

import secrets
import time

from runtime.broker.micro import Answer, MicroEndpoint
from runtime.call.error_reply import error_reply_of
from runtime.dispatch import Dispatcher
from runtime.loader import Function
from runtime.message import Message
from runtime.observe.failures import FailureLog
from runtime.observe.metrics import FunctionMetrics

_JSON = {"Content-Type": "application/json"}
"""Header of a reply in JSON, where no schema says so."""


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
            result = await dispatcher.run_request(message)
            answer = Answer(result.data, _JSON if result.is_undeclared_json else {})
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


def _refuse(failure: Exception, failures: FailureLog) -> Answer:
    """An error answer that tells the caller what it may know, and the log the rest."""
    reply, event_id = error_reply_of(failure), secrets.token_hex(8)
    if reply.status >= 500:  # noqa: PLR2004 - HTTP's border between the caller's fault and ours
        failures.refused(
            failure,
            status=reply.status,
            code=reply.code,
            event_id=event_id,
            is_defect=reply.is_defect,
        )
    error = (reply.status, reply.code)
    return Answer(reply.body(event_id), headers=reply.headers, error=error)
