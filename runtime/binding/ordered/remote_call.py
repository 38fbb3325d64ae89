"""Encodes a call of a function on another host: message and outcome. No I/O."""

import json
from collections.abc import Mapping
from typing import Any

from runtime.broker import headers as names
from runtime.broker.mailbox import mailbox_headers
from runtime.dispatch import DONE, Dead, Later, Outcome
from runtime.errors import Unavailable
from runtime.message import Message

LEADER = "Runtime-Leader"
"""Header of a call: the host that requests it."""
CALLED_BEFORE = "Runtime-Called-Before"
"""Header of a call whose message may have been passed to the function before."""
UNFINISHED = b'{"outcome":"unfinished"}'
"""The answer of a host that cannot finish the call."""


def call_headers(message: Message, function: str, leader: str) -> dict[str, str]:
    """The headers with which the other host restores the same message."""
    headers = {**mailbox_headers(message, function, message.attempt), LEADER: leader}
    if message.called_before:
        headers[CALLED_BEFORE] = "1"
    return headers


def called_message(call: Message) -> Message | None:
    """The message of a call; None when `call` is not a leader's call."""
    message = names.original(call)
    if message is not None:
        message.called_before = CALLED_BEFORE in call.headers
        message.attempt = names.number(call.headers, names.ATTEMPT)
        message.reply = ""  # The leader sends the in-progress signals.
    return message


def encode_outcome(outcome: Outcome) -> bytes:
    """Encode an outcome as the answer to a call."""
    content: dict[str, Any] = {"outcome": "done"}
    if isinstance(outcome, Later):
        content = {
            "outcome": "later",
            "delay_s": outcome.delay_s,
            "reason": outcome.reason,
            "error_type": outcome.error_type,
            "outage": outcome.outage is not None,
            "note": outcome.note,
            "where": outcome.place(),
            "counts": outcome.counts,
        }
    elif isinstance(outcome, Dead):
        content = {
            "outcome": "dead",
            "code": outcome.code,
            "reason": outcome.reason,
            "error_type": outcome.error_type,
            "traceback": outcome.traceback,
            "where": outcome.place(),
        }
    return json.dumps(content).encode()


def decode_outcome(answer: bytes) -> Outcome | None:
    """Decode the answer to a call; None for `UNFINISHED`.

    Raises:
        ValueError: the answer is not an outcome.
    """
    content: Mapping[str, Any] = json.loads(answer)
    kind = content.get("outcome")
    if kind == "done":
        return DONE
    if kind == "later":
        reason = str(content["reason"])
        outage = Unavailable("a server", reason) if content["outage"] else None
        return Later(
            float(content["delay_s"]),
            reason,
            str(content["error_type"]),
            outage,
            note=str(content.get("note", "")),
            where=str(content.get("where", "")),
            counts=content.get("counts", True) is not False,
        )
    if kind == "dead":
        code, reason, error_type, trace = (
            str(content[key]) for key in ("code", "reason", "error_type", "traceback")
        )
        return Dead(code, reason, error_type, trace, where=str(content.get("where", "")))
    if kind == "unfinished":
        return None
    raise ValueError("not an outcome")
