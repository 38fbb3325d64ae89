"""The outermost layer: every request gets an id, a place in line, and an answer."""

import re
import uuid

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.http_gateway.host_names import HostNames
from functions.http_gateway.problems import ProblemError

MAX_URL_BYTES = 8192

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_HEALTH = "/healthz"


class Boundary:
    """ASGI middleware that bounds concurrency and turns every exception into problem details.

    Args:
        app: what answers.
        max_concurrent: requests inside at a time; one more gets 503. `/healthz` does not count, as
            a busy gateway is a healthy one.
        hosts: which names of the gateway are right.
        log: where an exception that nobody foresaw is written, with the request's id.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_concurrent: int,
        hosts: HostNames,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._hosts = hosts
        self._app = app
        self._max_concurrent = max_concurrent
        self._log = log
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request_id = _request_id(scope)
        scope["state"]["request_id"] = request_id
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *_common_headers(request_id)]
            await send(message)

        self._inside += 1
        try:
            self._admit(scope)
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            pass  # Nobody is left to be answered.
        except Exception as failure:  # noqa: BLE001 - the last frame before the server
            problem = self._explain(failure, request_id)
            if not started:
                response = problem.response(instance=_instance(scope), request_id=request_id)
                await response(scope, receive, send_marked)
        finally:
            self._inside -= 1

    def _admit(self, scope: Scope) -> None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
            raise ProblemError(414, "URL_TOO_LONG", f"A URL may have {MAX_URL_BYTES} bytes.")
        if not self._hosts.allow(scope):
            detail = "The gateway does not answer under this Host; see GATEWAY_ALLOWED_HOSTS."
            raise ProblemError(421, "HOST_NOT_ALLOWED", detail)
        if self._inside > self._max_concurrent and scope["path"] != _HEALTH:
            raise ProblemError(503, "OVERLOADED", "Too many requests are being worked on.")

    def _explain(self, failure: Exception, request_id: str) -> ProblemError:
        if isinstance(failure, ProblemError):
            return failure
        self._log.error("A request failed unexpectedly.", request_id=request_id, exc_info=failure)
        return ProblemError(500, "INTERNAL", "The gateway failed; its log names this event_id.")


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex


def _common_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
    ]


def _instance(scope: Scope) -> str:
    # As it came, percent-encoded: it is ASCII and holds nothing that the caller did not send.
    return str(scope["raw_path"][:MAX_URL_BYTES], "ascii", "replace")
