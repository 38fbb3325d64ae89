"""The outermost middleware: request ids, a limit on concurrency, problem details for errors."""

import itertools
import re
import secrets
from urllib.parse import unquote

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.http_gateway.host_names import HostNames
from functions.http_gateway.problems import ProblemError

MAX_URL_BYTES = 8192
MAX_HEAD_BYTES = 32_768

LEAVE = "leave"
"""Name of a function in the request's state that gives its place back, before a wait that has a
limit of its own."""

_STARTED_AS = secrets.token_hex(8)
_numbers = itertools.count()
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


class Boundary:
    """ASGI middleware that bounds concurrency and turns every exception into problem details.

    Args:
        app: the wrapped application.
        max_concurrent: requests at a time whose body is complete and whose answer has not begun;
            one more gets 503. A client that sends or reads slowly takes no place from others, and
            neither does a page for which the gateway asks nobody, such as `/healthz`.
        hosts: the names under which the gateway may be asked.
        log: gets every unforeseen exception, with the request's id.
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
        started = has_place = False

        def leave() -> None:
            nonlocal has_place
            self._inside -= has_place
            has_place = False

        scope["state"][LEAVE] = leave

        async def receive_whole() -> Message:
            nonlocal has_place
            message = await receive()
            is_whole = message["type"] == "http.request" and not message.get("more_body")
            if is_whole and not has_place:
                self._take_place()
                has_place = True
            return message

        async def send_marked(message: Message) -> None:
            nonlocal started, has_place
            if message["type"] == "http.response.start":
                started = True
                leave()
                message["headers"] = [*message["headers"], *_common_headers(request_id)]
            await send(message)

        try:
            _use_origin_form(scope)
            self._check(scope)
            await self._app(scope, receive_whole, send_marked)
        except ClientDisconnect:
            pass  # The client is gone, so there is nothing to send.
        except Exception as failure:  # noqa: BLE001 - the last frame before the server
            problem = self._explain(failure, request_id)
            if not started:
                response = problem.response(instance=_instance(scope), request_id=request_id)
                await response(scope, receive, send_marked)
        finally:
            leave()

    def _take_place(self) -> None:
        if self._inside >= self._max_concurrent:
            raise ProblemError(503, "OVERLOADED", "Too many requests are in progress.")
        self._inside += 1

    def _check(self, scope: Scope) -> None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
            raise ProblemError(
                414, "URL_TOO_LONG", f"A URL may have at most {MAX_URL_BYTES} bytes."
            )
        if not self._hosts.allow(scope):
            detail = "The gateway does not answer under this Host; see GATEWAY_ALLOWED_HOSTS."
            raise ProblemError(421, "HOST_NOT_ALLOWED", detail)

    def _explain(self, failure: Exception, request_id: str) -> ProblemError:
        if isinstance(failure, ProblemError):
            return failure
        self._log.error("A request failed unexpectedly.", request_id=request_id, exc_info=failure)
        return ProblemError(500, "INTERNAL", "The gateway failed; its log names this event_id.")


def _use_origin_form(scope: Scope) -> None:
    """Read `GET http://host/path` as `GET /path` with that host.

    Source: RFC 9112, section 3.2.2.

    Raises:
        ProblemError: 400 for a URL without a host, or with a user.
    """
    scheme, separator, rest = scope["raw_path"].partition(b"://")
    if not separator or scheme.lower() not in {b"http", b"https"}:
        return
    authority, slash, path = rest.partition(b"/")
    # Source: RFC 9110, sections 4.2.1 and 4.2.4: no host is invalid, and a user is to be refused.
    if not authority.partition(b":")[0] or b"@" in authority:
        raise ProblemError(400, "MALFORMED_HTTP", "The URL names no host, or a user.")
    scope["raw_path"] = slash + path or b"/"
    scope["path"] = unquote(scope["raw_path"].decode("ascii", "replace"))
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"host"]
    scope["headers"].append((b"host", authority))


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    # Unique, and no secret.
    return f"{_STARTED_AS}{next(_numbers):016x}"


def _common_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
    ]


def _instance(scope: Scope) -> str:
    # The raw path, percent-encoded: it is ASCII and holds only what the caller sent.
    return str(scope["raw_path"][:MAX_URL_BYTES], "ascii", "replace")
