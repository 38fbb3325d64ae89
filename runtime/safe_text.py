"""Converts values from functions to text that is safe in headers, JSON, logs and terminals.

Reasons, codes and exceptions come from functions, so each may have any type and any length, and may
contain characters that a header, a JSON reader or a terminal does not accept.
"""

import decimal
import math
import re
from datetime import timedelta
from numbers import Real

from pydantic import ValidationError

CODE_CHARACTERS = 128
REASON_CHARACTERS = 2_000
DELAY_CAP_S = 30 * 24 * 3600.0
"""The longest wait that a function can ask for: 30 days."""

_CUT_MARK = "…"
_SHOWN_ERRORS = 5
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNREADABLE = "(a text that cannot be read)"


def text_of(value: object, limit: int = REASON_CHARACTERS) -> str:
    """Convert `value` to text of at most `limit` characters.

    Line breaks and tabs are kept. Other control characters, and halves of surrogate pairs, are
    escaped. A value whose `__str__` raises is replaced by a sentence that says so.
    """
    try:
        text = value if type(value) is str else str.__str__(str(value))
    except BaseException:  # noqa: BLE001 - a function's own class may raise anything
        return _UNREADABLE
    # Cut first, so that the rest is never processed.
    cut = text[: limit + 1].replace("\r\n", "\n")
    cut = _CONTROLS.sub(_escaped, cut)
    return cut if len(cut) <= limit else cut[: limit - 1] + _CUT_MARK


def line_of(value: object, limit: int = CODE_CHARACTERS) -> str:
    """As `text_of`, on one line, with single spaces between the words."""
    return " ".join(text_of(value, limit).split())


def describe(failure: BaseException) -> str:
    """The exception's text, or its class's name if it has none; never a payload's values."""
    if isinstance(failure, ValidationError):
        return text_of(_describe_validation(failure))
    text = text_of(failure).strip()
    return text if text and text != _UNREADABLE else name_of(failure)


def name_of(failure: BaseException) -> str:
    """The name of the exception's class."""
    return line_of(type(failure).__name__)


def seconds_of(delay: object) -> float | None:
    """`delay` as seconds from 0 to `DELAY_CAP_S`; None when it is not a duration."""
    if isinstance(delay, timedelta):
        delay = delay.total_seconds()
    if isinstance(delay, bool) or not isinstance(delay, Real | decimal.Decimal):
        return None
    try:
        delay_s = float(delay)
    except OverflowError:
        delay_s = math.inf if delay > 0 else 0.0  # type: ignore[operator]
    except Exception:  # noqa: BLE001 - a signalling NaN, or a number class of a library's own
        return None
    return None if math.isnan(delay_s) else min(max(delay_s, 0.0), DELAY_CAP_S)


def status_of(status: object, default: int = 400) -> int:
    """`status` as an endpoint's error code from 400 to 599; `default` when it is not one."""
    if not isinstance(status, int) or isinstance(status, bool):
        return default
    return int(status) if 400 <= status <= 599 else default  # noqa: PLR2004 - HTTP's error codes


def _describe_validation(failure: ValidationError) -> str:
    errors = failure.errors(include_url=False, include_input=False, include_context=False)
    shown = [
        f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors[:_SHOWN_ERRORS]
    ]
    if len(errors) > _SHOWN_ERRORS:
        shown.append(f"and {len(errors) - _SHOWN_ERRORS} more")
    return f"{failure.title}: {'; '.join(shown)}"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
