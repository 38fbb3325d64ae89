"""Field types of request models: bounded, and nothing in them that PostgreSQL cannot store."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

MAX_OBJECT_BYTES = 8192
NO_NUL = r"^[^\x00]*$"


def check_object(value: dict[str, Any]) -> dict[str, Any]:
    """The object, which fits into a jsonb column and a message.

    Raises:
        ValueError: more than 8192 bytes as JSON, NaN or Infinity, half a surrogate pair, or a NUL
            character.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size_bytes = len(text.encode())
    except (ValueError, TypeError, RecursionError):
        raise ValueError("it holds what JSON cannot") from None
    if size_bytes > MAX_OBJECT_BYTES:
        raise ValueError(f"it may have {MAX_OBJECT_BYTES} bytes as JSON")
    if "\\u0000" in text.replace("\\\\", ""):
        raise ValueError("it holds a NUL character")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(check_object)]
ShortText = Annotated[str, StringConstraints(max_length=128, pattern=NO_NUL)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=NO_NUL)]
Limit = Annotated[int, Field(ge=1, le=500)]

__all__ = ["MAX_OBJECT_BYTES", "NO_NUL", "JsonObject", "Limit", "Name", "ShortText", "check_object"]
