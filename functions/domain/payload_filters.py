"""Payload filters: CEL expressions that say which messages of a topic a route takes."""

import re
from typing import Any

import cel

MAX_LENGTH = 1024
# Each of these walks a list or map; nested ones multiply, and an expression cannot be interrupted.
MAX_LOOPS = 2
_LOOP = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*(\w*)")
_SAMPLE: dict[str, Any] = {
    "payload": {"site_id": "site", "metrics": {}},
    "metrics": {},
    "topic": "tenant/t/device/d/telemetry",
    "tenant_id": "t",
    "device_id": "d",
    "msg_type": "telemetry",
}


class PayloadFilter:
    """A compiled filter.

    It sees `payload`, `metrics`, `topic`, `tenant_id`, `device_id` and `msg_type`.
    """

    __slots__ = ("_execute", "_names")

    def __init__(self, expression: str) -> None:
        """Compile it.

        Raises:
            ValueError: it is no CEL expression.
        """
        program = cel.compile(expression)
        self._execute = program.execute
        # Each value given is converted, asked for or not: all take 32 µs, the metrics alone 11.
        self._names = tuple(_SAMPLE.keys() & set(program.variables()))

    def accepts(self, variables: dict[str, Any]) -> bool:
        """Whether it takes the message.

        Raises:
            LookupError: it asks for a field that the message does not have.
            ValueError: it cannot be evaluated on this message, or gives no yes or no.
        """
        try:
            result = self._execute({name: variables[name] for name in self._names})
        except LookupError:
            raise
        except Exception as failure:
            raise ValueError(f"the filter failed with {type(failure).__name__}") from failure
        if not isinstance(result, bool):
            raise ValueError("the filter gave neither true nor false")  # noqa: TRY004 - the expression's fault
        return result


def validate_filter(expression: str) -> None:
    """Check a filter before it is stored.

    Raises:
        ValueError: it cannot be used; the message is one sentence for the person who wrote it.
    """
    if not expression.strip() or len(expression) > MAX_LENGTH:
        raise ValueError(f"a payload filter has 1 to {MAX_LENGTH} characters")
    bound = _LOOP.findall(expression)  # `xs.all(x, x > 0)` binds x
    if len(bound) > MAX_LOOPS:
        raise ValueError(
            f"a payload filter holds at most {MAX_LOOPS} of all, exists, map and filter"
        )
    try:
        program = cel.compile(expression)
    except Exception as failure:
        raise ValueError("the payload filter is no CEL expression") from failure
    if not set(_SAMPLE).issuperset(set(program.variables()).difference(bound)):
        raise ValueError(f"a payload filter knows {', '.join(_SAMPLE)} only")
    try:
        result = program.execute(_SAMPLE)
    except RuntimeError as failure:
        if "Undefined variable or function" in str(failure):
            raise ValueError("the payload filter calls a function that CEL lacks") from failure
    except Exception:  # noqa: BLE001 - the sample lacks what the filter asks for; a message may have it
        return
    else:
        if not isinstance(result, bool):
            raise ValueError("a payload filter gives true or false")  # noqa: TRY004 - as above


__all__ = ["MAX_LENGTH", "PayloadFilter", "validate_filter"]
