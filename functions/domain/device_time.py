"""Reads the time that a device writes into its message, within bounds."""

from datetime import UTC, datetime, timedelta

MAX_AHEAD_NS = 300 * 1_000_000_000
"""How far a device's clock may be ahead of the stream's."""
MAX_BEHIND_NS = 400 * 86_400 * 1_000_000_000
"""How old a reading may be, as for telemetry that is imported."""

_NS_PER_US = 1000
_US_PER_S = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_LENGTH = 40
# Up to these limits a number counts seconds, milliseconds, microseconds; beyond, nanoseconds. Each
# is the year 5138 in its unit, and 1973 in the next smaller one.
_MAX_SECONDS = 10**11
_MAX_MILLISECONDS = 10**14
_MAX_MICROSECONDS = 10**17


def read_device_time_ns(written: object, stored_at_ns: int) -> int | None:
    """When the device measured, in nanoseconds since 1970, to the microsecond; None when unknown.

    Args:
        written: what the message has as its time: RFC 3339 with a zone, or a number of seconds,
            milliseconds, microseconds or nanoseconds since 1970, which its size tells apart.
            Anything else counts as no time.
        stored_at_ns: when the stream stored the message. A time that is more than `MAX_AHEAD_NS`
            later or `MAX_BEHIND_NS` earlier is that of a clock that was never set.
    """
    if type(written) is str:
        time_us = _read_text(written)
    elif type(written) is int or type(written) is float:
        time_us = _read_number(written)
    else:
        return None
    if time_us is None:
        return None
    time_ns = time_us * _NS_PER_US
    return time_ns if -MAX_AHEAD_NS <= stored_at_ns - time_ns <= MAX_BEHIND_NS else None


def _read_text(text: str) -> int | None:
    if len(text) > _MAX_LENGTH:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    if time.tzinfo is None:
        return None
    return (time - _EPOCH) // _MICROSECOND


def _read_number(number: float) -> int | None:
    # Also false for NaN and infinity.
    if not 0 < number < _MAX_MICROSECONDS * _NS_PER_US:
        return None
    if number < _MAX_SECONDS:
        return round(number * _US_PER_S)
    if number < _MAX_MILLISECONDS:
        return round(number * 1000)
    return round(number if number < _MAX_MICROSECONDS else number / _NS_PER_US)


def as_time(time_ns: int) -> datetime:
    """The time in UTC, to the microsecond."""
    return _EPOCH + timedelta(microseconds=time_ns // _NS_PER_US)


__all__ = ["MAX_AHEAD_NS", "MAX_BEHIND_NS", "as_time", "read_device_time_ns"]
