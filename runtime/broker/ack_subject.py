"""The subject on which a delivery is settled: what JetStream says of the delivery.

After `$JS.ACK.`: [domain, account,] stream, consumer, deliveries, sequence, consumer's sequence,
time, pending. Version 2 has the domain and the account. Source: NATS ADR-15.
"""

from runtime.message import Message

_TOKENS_V1 = 9

Origin = tuple[str, str, str, str]


def origin_of(reply: str) -> Origin:
    """Identity of a message: equal for its deliveries, different for every other message.

    The stream, the consumer, the sequence and the time of storage: a stream that is created anew
    begins with the first sequence again.
    """
    tokens, first = _parse(reply)
    return tokens[first], tokens[first + 1], tokens[first + 3], tokens[first + 5]


def deliveries_of(reply: str) -> int:
    """How often the server has delivered the message, this delivery included."""
    tokens, first = _parse(reply)
    return int(tokens[first + 2])


def place_of(reply: str) -> tuple[int, int]:
    """The consumer's sequence of the delivery, and how many messages follow it."""
    tokens, first = _parse(reply)
    return int(tokens[first + 4]), int(tokens[first + 6])


def set_origin(message: Message) -> None:
    """Set the stream, sequence, attempt and time of storage of a message that was pulled."""
    tokens, first = _parse(message.reply)
    message.stream = tokens[first]
    message.attempt = int(tokens[first + 2])
    message.sequence = int(tokens[first + 3])
    message.stored_at_ns = int(tokens[first + 5])


def _parse(reply: str) -> tuple[list[str], int]:
    tokens = reply.split(".")
    return tokens, 2 if len(tokens) == _TOKENS_V1 else 4
