"""Pages of a list: a bounded number of items, and a cursor that says where the next page begins."""

import base64
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

import orjson
from pydantic import BaseModel, StringConstraints

from functions.domain.values import check_time
from runtime import Reject

T = TypeVar("T")
Cursor = Annotated[str, StringConstraints(max_length=1024)]


class Page(BaseModel, Generic[T]):
    """Some of the items. `next_cursor` is None on the last page."""

    items: list[T]
    next_cursor: str | None = None


def write_cursor(*key: Any) -> str:  # noqa: ANN401 - text, numbers and times
    """An opaque text from the sort key of a page's last item."""
    return base64.urlsafe_b64encode(orjson.dumps(key)).decode().rstrip("=")


def read_cursor(cursor: str | None, *parts: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The key in a cursor, each part read by its function; all None without a cursor.

    Raises:
        Reject: `CURSOR_INVALID`.
    """
    if cursor is None:
        return (None,) * len(parts)
    try:
        key = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return tuple(read(value) for read, value in zip(parts, key, strict=True))
    except (ValueError, TypeError):
        raise Reject("CURSOR_INVALID", "The cursor is none that this list has given.") from None


def as_text(value: object) -> str:
    """A part of a cursor's key that is text.

    Raises:
        ValueError: it is none, or holds a NUL.
    """
    if not isinstance(value, str) or "\x00" in value:
        raise ValueError("no text")
    return value


def as_integer(value: object) -> int:
    """A part of a cursor's key that is a whole number of 64 bits at most.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise ValueError("no integer")
    return value


def as_time(value: object) -> datetime:
    """A part of a cursor's key that is an aware time.

    Raises:
        ValueError: it is none.
    """
    time = datetime.fromisoformat(as_text(value))
    if time.tzinfo is None:
        raise ValueError("no aware time")
    return check_time(time)


def as_uuid(value: object) -> UUID:
    """A part of a cursor's key that is a UUID.

    Raises:
        ValueError: it is none.
    """
    return UUID(as_text(value))


def cut(items: list[T], limit: int, key: Callable[[T], tuple[Any, ...]]) -> Page[T]:
    """The page from a query that asked for one item more than `limit`."""
    if len(items) <= limit:
        return Page(items=items)
    return Page(items=items[:limit], next_cursor=write_cursor(*key(items[limit - 1])))


__all__ = [
    "Cursor",
    "Page",
    "as_integer",
    "as_text",
    "as_time",
    "as_uuid",
    "cut",
    "read_cursor",
    "write_cursor",
]
