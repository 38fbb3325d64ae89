"""Formats the values of a manifest's models as a manifest writes them."""

from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from runtime.manifest.rate import parse_rate
from runtime.manifest.values import parse_duration, parse_size

_DURATION_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s"), (0.001, "ms"))
_SIZE_UNITS = (
    (10**9, "GB"),
    (10**6, "MB"),
    (10**3, "KB"),
    (2**30, "GiB"),
    (2**20, "MiB"),
    (2**10, "KiB"),
)


def show_value(field: FieldInfo, value: Any) -> Any:  # noqa: ANN401 - any value of a model
    """The value with its unit; one that has none as it is."""
    parsers = _parsers_of(field.annotation) | _parsers_in(field.metadata)
    if isinstance(value, tuple | list):
        return [_show(parsers, item) for item in value]
    return _show(parsers, value)


def _show(parsers: set[Callable[..., Any]], value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if parse_duration in parsers:
        return _show_duration(value)
    if parse_size in parsers and value > 0:
        return _show_size(int(value))
    if parse_rate in parsers:
        return _show_rate(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _show_duration(seconds: float) -> str:
    parts, left_ms = "", round(seconds * 1000)
    for unit_s, unit in _DURATION_UNITS:
        number, left_ms = divmod(left_ms, round(unit_s * 1000))
        parts += f"{number}{unit}" if number else ""
    return parts or "0s"


def _show_size(size: int) -> str | int:
    for factor, unit in _SIZE_UNITS:
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return size


def _show_rate(per_s: float) -> str:
    for seconds, unit in ((1, "s"), (60, "m"), (3600, "h"), (86_400, "d")):
        if (number := round(per_s * seconds, 6)).is_integer():
            return f"{number:.0f}/{unit}"
    return f"{per_s:g}/s"


def _parsers_of(annotation: object) -> set[Callable[..., Any]]:
    found = set()
    if get_origin(annotation) is Annotated:
        found |= _parsers_in(get_args(annotation)[1:])
    for inner in get_args(annotation):
        found |= _parsers_of(inner)
    return found


def _parsers_in(metadata: Any) -> set[Callable[..., Any]]:  # noqa: ANN401 - what Annotated holds
    return {item.func for item in metadata if isinstance(item, BeforeValidator)}
