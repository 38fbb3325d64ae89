"""A call of an ordered function on another host: its message and its outcome as bytes."""

from typing import Literal

from pydantic import BaseModel

from runtime.broker import headers as names
from runtime.broker.connection import Broker
from runtime.broker.mailbox import mailbox_headers
from runtime.broker.remote_calls import CallServer
from runtime.dispatch import DONE, Dead, Dispatcher, Done, Later, Outcome
from runtime.errors import Unavailable
from runtime.message import Message

CALLED_BEFORE = "Runtime-Called-Before"
"""Header of a call whose message may have been passed to the function before."""
_UNFINISHED = b'{"outcome":"unfinished"}'
"""The answer of a host that cannot finish the call."""


class _Answer(BaseModel):
    outcome: Literal["done", "later", "dead", "unfinished"]
    delay_s: float = 0.0
    code: str = ""
    reason: str = ""
    error_type: str = ""
    traceback: str = ""
    is_outage: bool = False
    note: str = ""
    counts: bool = True
    where: str = ""
    attempts: int = 0
    is_beyond: bool = False


def call_headers(message: Message, function: str) -> dict[str, str]:
    """The headers with which the other host restores the same message."""
    headers = dict(mailbox_headers(message, function, message.attempt))
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
    if isinstance(outcome, Done):
        answer = _Answer(outcome="done")
    else:
        answer = _Answer(
            outcome="later",
            reason=outcome.reason,
            error_type=outcome.error_type,
            where=outcome.place(),
            attempts=outcome.attempts,
        )
        if isinstance(outcome, Later):
            answer.delay_s, answer.note = outcome.delay_s, outcome.note
            answer.counts, answer.is_beyond = outcome.counts, outcome.is_beyond
            answer.is_outage = outcome.outage is not None
        else:
            answer.outcome, answer.code = "dead", outcome.code
            answer.traceback = outcome.traceback
    return answer.model_dump_json(exclude_defaults=True).encode()


def decode_outcome(data: bytes) -> Outcome | None:
    """Decode the answer to a call; None when the host could not finish the call.

    Raises:
        ValueError: the answer is not an outcome.
    """
    answer = _Answer.model_validate_json(data)
    reason, error_type, where = answer.reason, answer.error_type, answer.where
    if answer.outcome == "later":
        outage = Unavailable("a server", reason) if answer.is_outage else None
        return Later(
            answer.delay_s,
            reason,
            error_type,
            outage,
            note=answer.note,
            where=where,
            counts=answer.counts,
            attempts=answer.attempts,
            is_beyond=answer.is_beyond,
        )
    if answer.outcome == "dead":
        return Dead(
            answer.code,
            reason,
            error_type,
            answer.traceback,
            where=where,
            attempts=answer.attempts,
        )
    return DONE if answer.outcome == "done" else None


def standby(dispatcher: Dispatcher, broker: Broker, leader_ttl_s: float) -> CallServer:
    """Build the standby of a function, which makes as many calls at a time as a leader would.

    Args:
        dispatcher: the function's.
        broker: the connection.
        leader_ttl_s: shorter than the time after which another host may lead.
    """

    async def make(call: Message) -> bytes:
        message = called_message(call)
        if message is None:
            return _UNFINISHED
        return encode_outcome(await dispatcher.run_event(message))

    function = dispatcher.function
    return CallServer(
        broker,
        function.name,
        function.spec.concurrency,
        leader_ttl_s,
        make=make,
        unfinished=_UNFINISHED,
    )
