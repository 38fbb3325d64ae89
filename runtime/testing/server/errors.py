"""Errors of the server in memory, with JetStream's own numbers and texts."""

from typing import Any


class Refused(Exception):  # noqa: N818 - names what happened
    """JetStream refuses a request. Source of the numbers: nats-server `server/errors.json`."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        self.error = {"code": code, "err_code": err_code, "description": description}
        super().__init__(description)


class NotModelled(Refused):
    """A real server may do this; the server in memory does not, and says so."""

    def __init__(self, what: str) -> None:
        super().__init__(501, 0, f"{what} is not modelled in memory; run the test on a real server")


def refuse_fields(kind: str, config: dict[str, Any], known: dict[str, Any]) -> None:
    """Refuse a configuration with a field, or a value of a field, that is not modelled.

    Args:
        kind: `stream` or `consumer`.
        config: the configuration.
        known: the modelled fields; the allowed values, or None for all values.

    Raises:
        NotModelled: names the field.
    """
    for field, value in config.items():
        if not value:
            continue
        if field not in known:
            raise NotModelled(f"the {kind} field {field}")
        allowed = known[field]
        if allowed is not None and value not in allowed:
            raise NotModelled(f"the {kind} field {field} with the value {value!r}")


def missing_stream() -> Refused:
    """The error for a stream that does not exist."""
    return Refused(404, 10059, "stream not found")


def missing_consumer() -> Refused:
    """The error for a consumer that does not exist."""
    return Refused(404, 10014, "consumer not found")


def missing_message() -> Refused:
    """The error for a message that does not exist."""
    return Refused(404, 10037, "no message found")
