"""Parses a manifest's rates, such as `50/s`."""

import re
from typing import Annotated

from pydantic import BeforeValidator

FASTEST_PER_S = 1_000_000.0
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|m|h|d)")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_rate(value: object) -> float:
    """Parse a rate such as `50/s`, `100/m`, `2000/h` or `10/d` to a number a second.

    Raises:
        ValueError: anything else, a bare number included, as its unit would be a guess; or a rate
            of 0, or one above `FASTEST_PER_S`.
    """
    found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is not a rate; write it like 50/s, 100/m, 2000/h or 10/d")
    per_s = float(found[1]) / _UNITS_S[found[2]]
    if not per_s:
        raise ValueError(f"{value!r} would let nothing through; use `runtime pause` for that")
    if per_s > FASTEST_PER_S:
        raise ValueError(f"{value!r} is too big; use at most {FASTEST_PER_S:.0f}/s")
    return per_s


Rate = Annotated[float, BeforeValidator(parse_rate, json_schema_input_type=str)]
