"""Expands gzip bodies, never beyond the size that the plain body may have."""

import zlib

from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request

_GZIP_WBITS = 31


def is_gzip(request: Request) -> bool:
    """Whether the body is coded with gzip; otherwise it is plain.

    Raises:
        ProblemError: 415 for another coding, or several.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding in {"gzip", "x-gzip"}:
        return True
    if coding == "identity":
        return False
    raise ProblemError(
        415,
        "UNSUPPORTED_CONTENT_ENCODING",
        "Send the body unencoded, or with gzip.",
        headers={"Accept-Encoding": "gzip"},
    )


def expand(body: bytes, *, limit_bytes: int) -> bytes:
    """The plain bytes of one gzip member; not more than `limit_bytes` of them are ever made.

    Raises:
        ProblemError: 413 for more bytes, 400 for what is not exactly one whole member.
    """
    decoder = zlib.decompressobj(wbits=_GZIP_WBITS)
    try:
        plain = decoder.decompress(body, limit_bytes + 1)
    except zlib.error:
        raise _malformed() from None
    if len(plain) > limit_bytes:
        raise ProblemError(
            413, "BODY_TOO_LARGE", f"The expanded body may have at most {limit_bytes} bytes."
        )
    if not decoder.eof or decoder.unused_data:
        raise _malformed()
    return plain


def _malformed() -> ProblemError:
    return ProblemError(400, "INVALID_GZIP", "The body is not one whole gzip member.")
