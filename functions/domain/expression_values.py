"""What an expression's value becomes: JSON, or a key."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from functions.domain.expressions import EvaluationFailed

_MAX_DEPTH = 32


def as_json(value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - whatever CEL returns
    """The value with JSON's types alone.

    CEL's maps have no order, so their keys are sorted: every attempt sends the same bytes.

    Raises:
        EvaluationFailed: JSON has no such value.
    """
    if depth > _MAX_DEPTH:
        raise EvaluationFailed(f"its result is nested more than {_MAX_DEPTH} deep")
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise EvaluationFailed("its result is no finite number")
        return value
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise EvaluationFailed("its result has a key that is no text")
        return {key: as_json(value[key], depth + 1) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [as_json(item, depth + 1) for item in value]
    raise EvaluationFailed(f"its result is a {type(value).__name__}, which JSON lacks")


def as_key(value: Any) -> str:  # noqa: ANN401 - as above
    """The value as a key: empty unless it is a text or a number.

    A list or an object is no key: what the server stores of it has no order of its own.
    """
    return str(value) if isinstance(value, str | int | float) else ""


__all__ = ["as_json", "as_key"]
