"""Pages of a list: a bounded number of items, and a cursor to the next page."""

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
M = TypeVar("M", bound=BaseModel)
PAGE_BYTES = 700_000
"""The size of a page as JSON. A server takes messages of 1 MB unless it is set otherwise."""
Cursor = Annotated[str, StringConstraints(max_length=1024)]


class Page(BaseModel, Generic[T]):
    """One page of the items. `next_cursor` is None on the last page."""

    items: list[T]
    next_cursor: str | None = None


def write_cursor(*key: Any) -> str:  # noqa: ANN401 - text, numbers, times and UUIDs
    """An opaque text that encodes the sort key of a page's last item."""
    written = orjson.dumps(key, default=_write_uuid)
    return base64.urlsafe_b64encode(written).decode().rstrip("=")


def _write_uuid(value: object) -> str:
    """For orjson, which knows `UUID` and not the subclass of the database's driver."""
    if isinstance(value, UUID):
        return str(value)
    raise TypeError


def read_cursor(cursor: str | None, *parts: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The sort key in a cursor, each part read by its function; all None without a cursor.

    Raises:
        Reject: `CURSOR_INVALID`.
    """
    if cursor is None:
        return (None,) * len(parts)
    try:
        key = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return tuple(read(value) for read, value in zip(parts, key, strict=True))
    except (ValueError, TypeError):
        raise Reject("CURSOR_INVALID", "The cursor is not one that this list returned.") from None


def as_text(value: object) -> str:
    """A part of a cursor's key that is text.

    Raises:
        ValueError: the part is not text, or holds a NUL.
    """
    if not isinstance(value, str) or "\x00" in value:
        raise ValueError("not a text")
    return value


def as_integer(value: object) -> int:
    """A part of a cursor's key that is a whole number of at most 64 bits.

    Raises:
        ValueError: the part is not such a number.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise ValueError("not an integer of 64 bits")
    return value


def as_time(value: object) -> datetime:
    """A part of a cursor's key that is an aware time.

    Raises:
        ValueError: the part is not such a time.
    """
    time = datetime.fromisoformat(as_text(value))
    if time.tzinfo is None:
        raise ValueError("the time has no time zone")
    return check_time(time)


def as_uuid(value: object) -> UUID:
    """A part of a cursor's key that is a UUID.

    Raises:
        ValueError: the part is not a UUID.
    """
    return UUID(as_text(value))


def cut(items: list[M], limit: int, key: Callable[[M], tuple[Any, ...]]) -> Page[M]:
    """The page from `items`, the result of a query that asked for `limit` + 1.

    A page is one NATS message, so it ends before an item with which it would have more than
    `PAGE_BYTES` as JSON; it has at least one.
    """
    count = min(limit, count_fitting(items))
    if len(items) <= count:
        return Page(items=items)
    return Page(items=items[:count], next_cursor=write_cursor(*key(items[count - 1])))


def count_fitting(items: list[M]) -> int:
    """How many of the items fit into a page; at least one, if there is any."""
    size_bytes = 0
    for count, item in enumerate(items):
        size_bytes += len(item.model_dump_json().encode()) + 1
        if size_bytes > PAGE_BYTES and count:
            return count
    return len(items)


__all__ = [
    "PAGE_BYTES",
    "Cursor",
    "Page",
    "as_integer",
    "as_text",
    "as_time",
    "as_uuid",
    "count_fitting",
    "cut",
    "read_cursor",
    "write_cursor",
]
