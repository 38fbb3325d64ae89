"""Reads the order key, fair key or priority of a message from its subject or payload."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from runtime.manifest.model import KeySpec, PrioritySpec
from runtime.message import Message

LONGEST = 64
"""The most characters of a key that is kept as it is. A longer or unusual key is hashed: two
thousand keys must fit into the record of a lease, whatever devices send."""
NO_KEY = ""
"""The key of all messages without a key: they share it, so they have an order too."""


def key_of(spec: KeySpec) -> Callable[[Message], str]:
    """A function that returns a message's key, or `NO_KEY`. It raises nothing."""
    if spec.token is not None:
        return _by_token(spec.token - 1)
    return _by_field((spec.field or "").split("."))


@dataclass(frozen=True, slots=True)
class Priorities:
    """The levels of a function's messages; they become a part of the fair key.

    So a flood of one level has its own share of the buffer and its own spill queues, and does not
    hide the messages of another level of the same key.

    Attributes:
        weights: the weight of each level.
        level: returns the level of a message.
    """

    weights: Sequence[int]
    level: Callable[[Message], int]

    def add_to(self, fair_key: Callable[[Message], str]) -> Callable[[Message], str]:
        """A fair key that contains the level."""
        level = self.level
        return lambda message: f"{level(message)} {fair_key(message)}"

    def level_of(self, fair_key: str) -> int:
        """The level in a fair key that `add_to` made."""
        return int(fair_key.partition(" ")[0])


def priorities_of(spec: PrioritySpec) -> Priorities:
    """The priorities of a function; a message of no known level has the default's."""
    levels = {name: level for level, name in enumerate(spec.weights)}
    default = levels[spec.default]
    key = key_of(spec)
    return Priorities(
        tuple(spec.weights.values()), lambda message: levels.get(key(message), default)
    )


def no_key(_message: Message) -> str:
    """The fair key of a function that has priorities alone."""
    return NO_KEY


def _by_token(place: int) -> Callable[[Message], str]:
    def key(message: Message) -> str:
        tokens = message.subject.split(".")
        return _short(tokens[place]) if place < len(tokens) else NO_KEY

    return key


def _by_field(names: list[str]) -> Callable[[Message], str]:
    def key(message: Message) -> str:
        try:
            value: Any = orjson.loads(message.data)
        except orjson.JSONDecodeError:
            return NO_KEY
        for name in names:
            if not isinstance(value, dict) or name not in value:
                return NO_KEY
            value = value[name]
        # 7 and "7" name the same device; lists and mappings are compared by their JSON.
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        return _short(text)

    return key


def _short(text: str) -> str:
    if len(text) <= LONGEST and text.isascii() and text.isprintable():
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
