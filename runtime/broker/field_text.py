"""Formats values of JetStream's configuration as a manifest writes them."""

from decimal import Decimal
from typing import Any

_DURATIONS = {"max_age", "duplicate_window", "ack_wait", "inactive_threshold"}
_SIZES = {"max_bytes", "max_msg_size"}
_LIMITS = {
    "max_age", "max_bytes", "max_msgs", "max_msgs_per_subject", "max_msg_size", "max_deliver",
}  # fmt: skip
_DURATION_UNITS = (("d", 86_400), ("h", 3600), ("m", 60))
_SIZE_UNITS = (("GB", 10**9), ("MB", 10**6), ("KB", 1000))
_BINARY_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def show_value(field: str, value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """The value for a person: `30s`, `1GiB`, `no limit`, `none`; not escaped for a terminal."""
    if field in _LIMITS and isinstance(value, int) and value <= 0:
        return "no limit"
    if field in _DURATIONS and isinstance(value, int):
        return show_duration(value)
    if field in _SIZES and isinstance(value, int):
        return show_size(value)
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value) if value not in (None, "") else "none"


def show_duration(duration_ns: int) -> str:
    """The duration as a manifest writes it, exact to the nanosecond."""
    parts, left_ns = [], duration_ns
    for unit, seconds in _DURATION_UNITS:
        if left_ns >= seconds * 10**9:
            parts.append(f"{left_ns // (seconds * 10**9)}{unit}")
            left_ns %= seconds * 10**9
    if left_ns or not parts:
        parts.append(f"{Decimal(left_ns) / 10**9:f}s")
    return "".join(parts)


def show_size(size_bytes: int) -> str:
    """The size as a manifest writes it, exact to the byte."""
    for unit, factor in _SIZE_UNITS:
        if size_bytes >= factor and size_bytes % (factor // 100) == 0:
            return f"{Decimal(size_bytes) / factor:f}{unit}"
    for unit, factor in _BINARY_UNITS:
        if size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}B"
