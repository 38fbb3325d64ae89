"""Marks the platform's messages to devices, so that a bridge that hears them knows them.

A bridge takes what is published below `tenant/…`, and the platform's own messages to devices are
published there too. Each carries a mark: a signature of its topic and content, by a key that the
hosts of an installation share. Devices see the marks of what they receive, and can make none.
"""

import hashlib
import hmac
import secrets
import time
from typing import Any

from pydantic import SecretStr

from functions.domain.topics import Topic, parse_topic

SENT_BY = "sent-by"
"""The user property with the mark, of a message of MQTT 5."""

_PREFIX = "runtime/"
_TELL_EVERY_S = 60.0
_PROCESS_KEY = secrets.token_urlsafe(32)
"""Without a key of the installation, the functions of one process know each other's messages."""


class DownlinkMarks:
    """Makes marks, and checks them.

    Args:
        key: shared by all hosts of the installation; None or empty for one of this process.
    """

    def __init__(self, key: SecretStr | None) -> None:
        secret = (key.get_secret_value() if key else "") or _PROCESS_KEY
        # The key has other uses, and none of their signatures shall be one of these.
        self._key = hmac.digest(secret.encode(), b"marks of messages to devices", hashlib.sha256)

    def make(self, topic: str, payload: bytes) -> str:
        """The mark of a message: 72 ASCII characters."""
        found = hmac.new(self._key, topic.encode() + b"\0", hashlib.sha256)
        found.update(payload)
        return _PREFIX + found.hexdigest()

    def is_own(self, topic: str, payload: bytes, mark: str) -> bool:
        """Whether the platform has sent this message, and to a device."""
        if not mark.startswith(_PREFIX):
            return False
        parsed = parse_topic(topic)
        if not isinstance(parsed, Topic) or not parsed.is_downlink:
            return False
        return hmac.compare_digest(self.make(topic, payload).encode(), mark.encode())


class OwnMessages:
    """Recognises the platform's messages that come back, and logs how many, once a minute.

    Args:
        marks: of the installation.
        log: the function's.
    """

    def __init__(self, marks: DownlinkMarks, log: Any) -> None:  # noqa: ANN401 - structlog's
        self._marks = marks
        self._log = log
        self._untold = 0
        self._told_at_s = float("-inf")

    def recognise(self, topic: str, payload: bytes, mark: str) -> bool:
        """Whether the message is the platform's own, and so not to be stored; counts it."""
        if not self._marks.is_own(topic, payload, mark):
            return False
        self._untold += 1
        if time.monotonic() - self._told_at_s >= _TELL_EVERY_S:
            self.tell()
        return True

    def tell(self) -> None:
        """Log the number of messages since the last time, if there were any."""
        if not self._untold:
            return
        self._log.info(
            "Messages of the platform to devices came back, and were not stored.",
            messages=self._untold,
        )
        self._untold, self._told_at_s = 0, time.monotonic()


__all__ = ["SENT_BY", "DownlinkMarks", "OwnMessages"]
