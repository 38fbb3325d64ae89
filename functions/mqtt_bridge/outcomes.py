"""What becomes of connections and messages at the broker."""

from paho.mqtt.reasoncodes import ReasonCode

PACKET_TOO_LARGE = 0x95
_CREDENTIALS_REFUSED = frozenset({0x86, 0x87, 0x8C})
_TAKEN_OVER = 0x8E


class Disconnected(Exception):  # noqa: N818 - a state, not an error
    """There is no connection, or it has ended.

    Attributes:
        reason: why; of bounded length, and without anything that a device has sent.
        needs_a_person: whether waiting does not help: credentials, or a right that is missing.
        taken_over: whether another client has connected with this client id.
    """

    def __init__(
        self, reason: str, *, needs_a_person: bool = False, taken_over: bool = False
    ) -> None:
        self.reason = reason[:200]
        self.needs_a_person = needs_a_person
        self.taken_over = taken_over
        super().__init__(self.reason)


class NotPublished(Exception):  # noqa: N818 - an outcome
    """The broker did not take a message.

    Attributes:
        code: the reason code of its PUBACK, or the one that it would have had.
    """

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__(reason)


def disconnected_by(code: ReasonCode, what: str) -> Disconnected:
    """The end of a connection for which the broker, or the client, gives a reason code."""
    return Disconnected(
        f"{what}: {code}",
        needs_a_person=code.value in _CREDENTIALS_REFUSED,
        taken_over=code.value == _TAKEN_OVER,
    )


__all__ = ["PACKET_TOO_LARGE", "Disconnected", "NotPublished", "disconnected_by"]
