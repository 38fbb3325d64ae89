"""Limits of a consumer on one pull request, learned from its refusals."""

import re

_LIMIT = re.compile(r"exceeded maxrequest(batch|expires|maxbytes) of (\S+)", re.IGNORECASE)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LEAST_EXPIRES_S = 0.01


class PullLimits:
    """A consumer's limits `max_batch`, `max_expires` and `max_bytes`, once a refusal named them.

    Source of the texts: nats-server `server/consumer.go`, `processNextMsgRequest`.
    """

    def __init__(self) -> None:
        self._messages: int | None = None
        self._size_bytes: int | None = None
        self._expires_s: float | None = None

    def learn(self, refusal: str) -> bool:
        """Store the limit that a refusal names; return False when it names none."""
        found = _LIMIT.search(refusal)
        if found is None:
            return False
        kind, limit = found[1].lower(), found[2]
        if kind == "expires":
            seconds = _seconds(limit)
            self._expires_s = max(_LEAST_EXPIRES_S, seconds) if seconds else None
            return bool(seconds)
        if not limit.isdigit() or not int(limit):
            return False
        if kind == "batch":
            self._messages = int(limit)
        else:
            self._size_bytes = int(limit)
        return True

    def messages(self, wanted: int) -> int:
        """The wanted number of messages, at most `max_batch`."""
        return wanted if self._messages is None else min(wanted, self._messages)

    def size_bytes(self, wanted: int) -> int:
        """The wanted number of bytes, at most `max_bytes`."""
        return wanted if self._size_bytes is None else min(wanted, self._size_bytes)

    def expires_s(self, wanted_s: float) -> float:
        """The wanted expiry, at most `max_expires`."""
        return wanted_s if self._expires_s is None else min(wanted_s, self._expires_s)


def _seconds(duration: str) -> float:
    """A duration as Go writes it, such as `1m30s`; 0 for anything else."""
    if _PART.sub("", duration):
        return 0.0
    return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(duration))
