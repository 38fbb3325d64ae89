"""Reads the header by which a client marks the repeats of one request."""

import re

from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def idempotency_key(request: Request) -> str | None:
    """The request's `Idempotency-Key`; None without one.

    Raises:
        ProblemError: 400 for a key that is too long, or has other characters than visible ASCII.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise ProblemError(
            400, "INVALID_IDEMPOTENCY_KEY", "Idempotency-Key may hold 1 to 255 visible characters."
        )
    return key
