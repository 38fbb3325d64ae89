"""Makes route jobs: one message for each route whose filters accept a device's message."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
import structlog

from functions.domain.envelope import Envelope
from functions.domain.identifiers import job_id
from functions.domain.registry import RegisteredRoute
from runtime import Message, Publication

_TOKEN = "provision_token"  # noqa: S105 - a field's name
_WARN_EVERY_S = 60.0


class JobMaker:
    """Matches messages with routes. A filter that fails on a message does not accept it.

    Attributes:
        failures: how often each route's filter failed; a missing field is not a failure.
    """

    def __init__(self, log: structlog.stdlib.BoundLogger) -> None:
        self.failures: dict[str, int] = {}
        self._log = log
        self._warned_at_s: dict[str, float] = {}

    def make(
        self,
        message: Message,
        envelope: Envelope,
        stored_at: datetime,
        routes: Sequence[RegisteredRoute],
    ) -> list[Publication]:
        """A job for each of `routes` that accepts the message; the same jobs on every delivery."""
        payload = envelope.payload
        if _TOKEN in payload:
            payload = {key: value for key, value in payload.items() if key != _TOKEN}
        variables = _variables(envelope, payload)
        return [
            _job(message, variables, payload, stored_at, route)
            for route in routes
            if self._accepts(route, variables, message)
        ]

    def _accepts(self, route: RegisteredRoute, variables: dict[str, Any], message: Message) -> bool:
        if route.payload_filter is None:
            return True
        try:
            return route.payload_filter.accepts(variables)
        except LookupError:
            return False
        except ValueError as failure:
            self._count(route.route_id, message.received_at_s, str(failure))
            return False

    def _count(self, route_id: str, now_s: float, reason: str) -> None:
        self.failures[route_id] = self.failures.get(route_id, 0) + 1
        if now_s - self._warned_at_s.get(route_id, -_WARN_EVERY_S) >= _WARN_EVERY_S:
            self._warned_at_s[route_id] = now_s
            self._log.warning(
                "A route's payload filter failed, so the route did not get the message",
                route_id=route_id,
                reason=reason,
                failures=self.failures[route_id],
            )


def _variables(envelope: Envelope, payload: dict[str, Any]) -> dict[str, Any]:
    topic = envelope.topic
    metrics = payload.get("metrics")
    return {
        "payload": payload,
        "metrics": metrics if isinstance(metrics, dict) else {},
        "topic": topic.text,
        "tenant_id": topic.tenant_id,
        "device_id": topic.device_id,
        "msg_type": topic.msg_type,
    }


def _job(
    message: Message,
    variables: dict[str, Any],
    payload: dict[str, Any],
    stored_at: datetime,
    route: RegisteredRoute,
) -> Publication:
    id_of_job = job_id(message.origin, route.route_id)
    tenant_id = variables["tenant_id"]
    job = {
        "job_id": id_of_job,
        "route_id": route.route_id,
        "tenant_id": tenant_id,
        "device_id": variables["device_id"],
        "topic": variables["topic"],
        "msg_type": variables["msg_type"],
        "payload": payload,
        "stored_at": stored_at,
    }
    return Publication(
        f"routes.{tenant_id}.{route.destination_type}", orjson.dumps(job), msg_id=id_of_job
    )


__all__ = ["JobMaker"]
