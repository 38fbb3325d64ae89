"""Values inside a JSON document, by their pointers.

Source: RFC 6901.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def pointer_of(path: Sequence[str | int]) -> str:
    """The pointer of a path of keys and indexes; empty for the whole document."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def with_values(document: Any, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """A copy of the document, with other values at these pointers.

    Raises:
        ValueError: the document has no such place.
    """
    for pointer, value in values.items():
        try:
            document = _with_value(document, _parts(pointer), value)
        except (AttributeError, LookupError, TypeError, ValueError):
            raise ValueError("the document has no such place") from None
    return document


def _with_value(place: Any, parts: Sequence[str], value: Any) -> Any:  # noqa: ANN401 - JSON
    """A copy of what lies on the way to the value; what lies beside it is shared."""
    if not parts:
        return value
    copied: Any = place.copy()
    key = int(parts[0]) if isinstance(copied, list) else parts[0]
    copied[key] = _with_value(copied[key], parts[1:], value)
    return copied


def _parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


__all__ = ["pointer_of", "with_values"]
