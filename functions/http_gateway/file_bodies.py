"""Takes a file as the body of a request to an endpoint that reads files.

Such an endpoint has the fields `format` and `content` in its request; over NATS they are fields of
the JSON object as any others. Over HTTP the body may be the file itself.
"""

from collections.abc import Mapping
from typing import Any

from functions.http_gateway.problems import ProblemError

LINES = frozenset({"application/x-ndjson", "application/jsonl", "application/x-jsonlines"})
FORMATS: Mapping[str, str] = {"text/csv": "csv", **dict.fromkeys(LINES, "ndjson")}
"""The value of `format` by the body's media type."""

_FIELDS = frozenset({"format", "content"})


def takes_files(request_schema: Mapping[str, Any] | None) -> bool:
    """Whether an endpoint with this JSON Schema of its request reads files."""
    properties = (request_schema or {}).get("properties")
    return isinstance(properties, Mapping) and properties.keys() >= _FIELDS


def file_fields(media_type: str, body: bytes) -> dict[str, object]:
    """The fields of the request whose body is a file.

    Raises:
        ProblemError: 400 for a file that is not UTF-8.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise ProblemError(400, "MALFORMED_BODY", "The file is not UTF-8.") from None
    return {"format": FORMATS[media_type], "content": text}


__all__ = ["FORMATS", "LINES", "file_fields", "takes_files"]
