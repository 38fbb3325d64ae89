"""Whose a message is: the key by which a function's messages are ordered, or take turns."""

import hashlib
from collections.abc import Callable
from typing import Any

import orjson

from runtime.manifest.model import KeySpec
from runtime.message import Message

LONGEST = 64
"""Characters of a key that is kept as it is. Of a longer or odd one a hash is: two thousand keys
must fit into the record of a lease, whatever devices send."""
NO_KEY = ""
"""The key of every message that has none: they share it, so none is without an order."""


def key_of(spec: KeySpec) -> Callable[[Message], str]:
    """What tells a message's key, `NO_KEY` where the message has none. Raises nothing."""
    if spec.token is not None:
        return _by_token(spec.token - 1)
    return _by_field((spec.field or "").split("."))


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
        # 7 and "7" name the same device; what is no plain value is told apart by its JSON.
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        return _short(text)

    return key


def _short(text: str) -> str:
    if len(text) <= LONGEST and text.isascii() and text.isprintable():
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
