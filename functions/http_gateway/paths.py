"""Splits a request's path before decoding it: an encoded slash stays in its segment."""

from urllib.parse import unquote

from functions.http_gateway.problems import ProblemError


def decode_segments(raw_path: bytes) -> tuple[str, ...]:
    """The path's segments, percent-decoded.

    Raises:
        ProblemError: 400 when a segment is not UTF-8 text or holds control characters.
    """
    raw = raw_path.decode("ascii", "replace").split("/")[1:]
    try:
        segments = tuple(unquote(segment, errors="strict") for segment in raw)
    except UnicodeDecodeError:
        raise ProblemError(400, "MALFORMED_PATH", "The path is not UTF-8.") from None
    if not all(segment.isprintable() for segment in segments):
        raise ProblemError(400, "MALFORMED_PATH", "The path holds control characters.")
    return segments
