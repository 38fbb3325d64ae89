"""Reads a request's body, bounded in size and time."""

import asyncio
import contextlib
from collections.abc import Mapping

from starlette.requests import ClientDisconnect

from functions.domain import strict_json
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request

_JSON_TYPES = ("application/json", "+json")


def media_type_of(request: Request) -> str:
    """The media type of the body, in lower case and without parameters; empty without one."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json_type(request: Request) -> None:
    """Require a JSON content type.

    Raises:
        ProblemError: 415 for another type.
    """
    if not media_type_of(request).endswith(_JSON_TYPES):
        raise ProblemError(415, "UNSUPPORTED_MEDIA_TYPE", "Send JSON as application/json.")


def require_json(request: Request) -> None:
    """Require plain JSON.

    Raises:
        ProblemError: 415 for another type, and for an encoded body.
    """
    require_json_type(request)
    require_identity(request)


def require_identity(request: Request) -> None:
    """Require a body that is not encoded.

    Raises:
        ProblemError: 415 for an encoded body.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ProblemError(415, "UNSUPPORTED_CONTENT_ENCODING", "Send the body unencoded.")


class BodyReader:
    """Reads the bodies of all requests.

    Args:
        timeout_s: how long a body may take.
        max_buffered_bytes: bytes of incomplete bodies that are held at a time.
    """

    def __init__(self, timeout_s: float, max_buffered_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._free_bytes = max_buffered_bytes

    async def read(self, request: Request, *, limit_bytes: int) -> bytes:
        """The whole body.

        Raises:
            ClientDisconnect: the client is gone.
            ProblemError: 413 as soon as the body is known to be longer than `limit_bytes`, without
                reading the rest; 408 when the body did not arrive in time; 503 when incomplete
                bodies fill the memory that they may take.
        """
        declared = request.headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit_bytes:
            raise _too_large(limit_bytes)
        chunks: list[bytes] = []
        received, more = 0, True
        try:
            # A timer costs as much as parsing the JSON of a reading.
            limit_s = None if request.has_whole_body else self._timeout_s
            async with asyncio.timeout(limit_s) if limit_s else contextlib.nullcontext():
                while more:
                    message = await request.receive()
                    if message["type"] != "http.request":
                        raise ClientDisconnect
                    chunk, more = message["body"], message["more_body"]
                    received += len(chunk)
                    self._free_bytes -= len(chunk)
                    self._check(received, limit_bytes)
                    chunks.append(chunk)
        except TimeoutError:
            raise ProblemError(
                408,
                "REQUEST_TIMEOUT",
                f"The body did not arrive within {self._timeout_s:g} s.",
                headers={"Connection": "close"},
            ) from None
        finally:
            self._free_bytes += received
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _check(self, received: int, limit_bytes: int) -> None:
        if received > limit_bytes:
            raise _too_large(limit_bytes)
        if self._free_bytes < 0:
            raise ProblemError(
                503,
                "OVERLOADED",
                "Too many bodies are incomplete.",
                headers={"Connection": "close"},
            )


def read_object(body: bytes, *, code: str) -> Mapping[str, object]:
    """The JSON object in a body.

    Args:
        body: the received bytes.
        code: the reason code for JSON that is not an object.

    Raises:
        ProblemError: 400 for a body that is not acceptable JSON, 422 for JSON that is not an
            object.
    """
    value = parse_object(body, code=code)
    check_object(body, value)
    return value


def parse_object(body: bytes, *, code: str) -> Mapping[str, object]:
    """The JSON object in a body, before `check_object` has passed.

    For whoever has to know first who sends the body.

    Raises:
        ProblemError: 400 for a body that is not JSON, 422 for JSON that is not an object.
    """
    try:
        value = strict_json.parse(body)
    except strict_json.BadJson as bad:
        raise _unacceptable(bad) from None
    if not isinstance(value, dict):
        raise ProblemError(422, code, "The body must be a JSON object.")
    return value


def check_object(body: bytes, value: Mapping[str, object]) -> None:
    """Check that all parsers agree about a body that was parsed.

    Raises:
        ProblemError: 400 if they do not.
    """
    try:
        strict_json.check(body, value)
    except strict_json.BadJson as bad:
        raise _unacceptable(bad) from None


def _unacceptable(bad: strict_json.BadJson) -> ProblemError:
    return ProblemError(400, "INVALID_JSON", f"The body is not acceptable JSON: {bad.reason}.")


def _too_large(limit_bytes: int) -> ProblemError:
    return ProblemError(413, "BODY_TOO_LARGE", f"The body may have at most {limit_bytes} bytes.")
