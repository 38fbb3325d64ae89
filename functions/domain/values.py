"""Bounded field types for request models; PostgreSQL can store every value they accept.

`jsonb` writes the number 1e20 as digits without an exponent. Read it with `orjson.loads`, which
makes a float of whole numbers beyond 64 bits again; `json.loads` makes an integer that `orjson`
cannot write.
"""

import json
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

MAX_OBJECT_BYTES = 8192
# Room for a chain of certificates with its key, and for authorities.
MAX_CONFIG_BYTES = 65_536
NO_NUL = r"^[^\x00]*$"
_INT64 = range(-(2**63), 2**63)
_FIRST_YEAR, _LAST_YEAR = 2, 9998


def check_object(value: dict[str, Any], *, max_bytes: int = MAX_OBJECT_BYTES) -> dict[str, Any]:
    """The object, checked to fit into a jsonb column and a message.

    Raises:
        ValueError: more than `max_bytes` as JSON, NaN or Infinity, an integer beyond 64 bits, half
            a surrogate pair, or a NUL character.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size_bytes = len(text.encode())
    except (ValueError, TypeError, RecursionError):
        raise ValueError("the object holds a value that JSON cannot express") from None
    if size_bytes > max_bytes:
        raise ValueError(f"the object may have at most {max_bytes} bytes as JSON")
    if _holds_long_integer(value):
        raise ValueError("the object holds an integer that does not fit 64 bits")
    if "\\u0000" in text.replace("\\\\", ""):
        raise ValueError("the object holds a NUL character")
    return value


def _holds_long_integer(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_long_integer, value.values()))
    if isinstance(value, list):
        return any(map(_holds_long_integer, value))
    return isinstance(value, int) and value not in _INT64


def same_json(one: object, other: object) -> bool:
    """Equality of JSON values: `true` is not 1, while 1 and 1.0 are the same number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return one == other


def check_time(value: datetime) -> datetime:
    """The time in UTC, checked to be a year away from either end of `datetime`'s range.

    Raises:
        ValueError: the year is not one of 2 to 9998; outside of them the conversion to UTC may
            leave the range.
    """
    if not _FIRST_YEAR <= value.year <= _LAST_YEAR:
        raise ValueError(f"the year must be between {_FIRST_YEAR} and {_LAST_YEAR}")
    return value.astimezone(UTC)


JsonObject = Annotated[dict[str, Any], AfterValidator(check_object)]
ConfigObject = Annotated[
    dict[str, Any], AfterValidator(partial(check_object, max_bytes=MAX_CONFIG_BYTES))
]
ShortText = Annotated[str, StringConstraints(max_length=128, pattern=NO_NUL)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=NO_NUL)]
Time = Annotated[AwareDatetime, AfterValidator(check_time)]
Limit = Annotated[int, Field(ge=1, le=500)]

__all__ = [
    "MAX_CONFIG_BYTES",
    "MAX_OBJECT_BYTES",
    "NO_NUL",
    "ConfigObject",
    "JsonObject",
    "Limit",
    "Name",
    "ShortText",
    "Time",
    "check_object",
    "check_time",
    "same_json",
]
