"""Payload filters: CEL expressions that select the messages of a topic for a route.

Variables: `payload`, `metrics`, `topic`, `tenant_id`, `device_id` and `msg_type`.
"""

from functions.domain.expressions import (
    MAX_LENGTH,
    check_expression,
    evaluate_sample,
)

_WHAT = "a payload filter"


def validate_filter(expression: str) -> None:
    """Check a filter before it is stored.

    Raises:
        ValueError: the filter cannot be used; the text is one sentence for its author.
    """
    program = check_expression(expression, _WHAT)
    try:
        result = evaluate_sample(program)
    except LookupError:
        return
    except ValueError as failure:
        raise ValueError(f"{_WHAT} {failure}") from failure
    if not isinstance(result, bool):
        raise ValueError(f"{_WHAT} must return true or false")  # noqa: TRY004 - as above


__all__ = ["MAX_LENGTH", "validate_filter"]
