"""Error responses: RFC 9457 problem details, without internals."""

import http
from collections.abc import Iterable, Mapping

import orjson
from starlette.responses import Response

RETRY_AFTER_S = 1
# RFC 9110 has renamed them. Python's phrases changed with its version 3.13, and codes are made of
# phrases.
_PHRASES = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}


class ProblemError(Exception):
    """The request ends with an error status.

    Args:
        status: HTTP status, 400 to 599.
        code: reason code in upper snake case; part of the interface, so it must not change.
        detail: one sentence for the caller's log; never an exception's text.
        headers: additional response headers.
        event_id: the endpoint's id of its failure; None for the request's own id.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        event_id: str | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.event_id = event_id
        if status in {429, 503}:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))
        super().__init__(f"{status} {code}: {detail}")

    def document(self, *, instance: str, request_id: str) -> dict[str, str | int]:
        """The problem details; `instance` is the requested path."""
        return {
            "type": "about:blank",
            "title": title(self.status),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "event_id": self.event_id or request_id,
            "instance": instance,
        }

    def response(self, *, instance: str, request_id: str) -> Response:
        """The response to send."""
        return Response(
            orjson.dumps(self.document(instance=instance, request_id=request_id)),
            self.status,
            self.headers,
            "application/problem+json",
        )


def title(status: int) -> str:
    """HTTP's phrase for a status, as RFC 9457 recommends for type `about:blank`."""
    if (phrase := _PHRASES.get(status)) is not None:
        return phrase
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def code_of(status: int) -> str:
    """The default reason code of a status: NOT_FOUND for 404."""
    return "".join(c if c.isalpha() else "_" for c in title(status).upper())


def tell_methods(asked: str, methods: Iterable[str]) -> Response:
    """The answer to a method that a path does not take, or to OPTIONS.

    Args:
        asked: the request's method.
        methods: those that the path takes, beside OPTIONS.

    Raises:
        ProblemError: 405 for a method that is not OPTIONS.
    """
    allow = ", ".join([*methods, "OPTIONS"])
    if asked == "OPTIONS":
        return Response(status_code=204, headers={"Allow": allow})
    told = f"This path allows {allow}."
    raise ProblemError(405, "METHOD_NOT_ALLOWED", told, headers={"Allow": allow})
