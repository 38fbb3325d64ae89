"""Calls a function on a running host: an endpoint by a request, others by their mailbox."""

import asyncio
import secrets
import time
from dataclasses import dataclass

from runtime.broker import stored
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetter, DeadLetters
from runtime.broker.function_consumers import find_consumers
from runtime.broker.mailbox import Mailbox, Parked
from runtime.broker.stream_configs import DEAD_LETTERS, MAILBOX
from runtime.cli.instances import ask_hosts
from runtime.cli.invocation import Wanted, make_remote_message, read_stored
from runtime.errors import ConfigError, NoAnswer, Problem, RequestFailed, Unavailable
from runtime.message import Message

LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class RemoteResult:
    """What a running host did with the event.

    Attributes:
        elapsed_s: from the request, or the post, to the outcome.
        reply: an endpoint's answer, also that of a failure.
        error: status and code of an endpoint's failure.
        is_done: whether the function was called and did not fail.
        letter: the dead letter that the message became.
        parked: the message, which waits for its next attempt.
        is_waiting: whether no host has settled the message yet.
    """

    elapsed_s: float
    reply: bytes | None = None
    error: tuple[int, str] | None = None
    is_done: bool = False
    letter: DeadLetter | None = None
    parked: Parked | None = None
    is_waiting: bool = False


async def call_remotely(
    broker: Broker, name: str, wanted: Wanted, timeout_s: float
) -> RemoteResult:
    """Call the function once and wait for what becomes of the event, at most `timeout_s`.

    Raises:
        ConfigError: no host runs the function, it takes no event, or there is no such message.
        Unavailable: no host answers.
    """
    instances = [each for each in await ask_hosts(broker) if each.function == name]
    kinds = {each.kind for each in instances}
    if "service" in kinds:
        raise _refusal(name, "a service takes no event", "name another function")
    message = await read_stored(broker, wanted) if wanted.is_stored else None
    if "endpoint" in kinds:
        subject = next(each.bound_to for each in instances if each.kind == "endpoint")
        data = message.data if message else wanted.payloads[0]
        return await _ask(broker, subject, data, dict(wanted.headers), timeout_s)
    if not instances and name not in await find_consumers(broker):
        raise _refusal(name, "no host runs it", "`runtime ls` lists what runs")
    letters = DeadLetters(broker)
    await letters.check_mailbox(name)
    if message is None:
        message = make_remote_message(wanted, name)
    else:
        message = await letters.as_redriven(message, name)
    return await _post(broker, name, message, timeout_s)


async def _ask(
    broker: Broker, subject: str, data: bytes, headers: dict[str, str], timeout_s: float
) -> RemoteResult:
    began_s = time.perf_counter()
    try:
        reply = await broker.request(subject, data, timeout_s=timeout_s, headers=headers)
    except RequestFailed as failure:
        elapsed_s = time.perf_counter() - began_s
        return RemoteResult(elapsed_s, failure.body, (failure.code, failure.description))
    except NoAnswer as failure:
        raise Unavailable(f"the endpoint on {subject}", failure.reason) from failure
    return RemoteResult(time.perf_counter() - began_s, reply.data, is_done=True)


async def _post(broker: Broker, name: str, message: Message, timeout_s: float) -> RemoteResult:
    """Post to the mailbox, as a redrive does, and look there until the copy is settled."""
    began_s = time.perf_counter()
    last_letter = await stored.last_sequence(broker, DEAD_LETTERS)
    last_copy = await stored.last_sequence(broker, MAILBOX)
    # An id of its own: the same message may be called as often as the user asks.
    ack = await Mailbox(broker).post(message, name, msg_id=f"invoke-{secrets.token_hex(11)}")
    until_s = began_s + timeout_s
    while await stored.fetch(broker, MAILBOX, ack.sequence) is not None:
        if time.perf_counter() > until_s:
            return RemoteResult(time.perf_counter() - began_s, is_waiting=True)
        await asyncio.sleep(LOOK_AGAIN_S)
    elapsed_s = time.perf_counter() - began_s
    if letter := await _find_letter(broker, name, message, last_letter):
        return RemoteResult(elapsed_s, letter=letter)
    if parked := await _find_parked(broker, name, message, last_copy):
        return RemoteResult(elapsed_s, parked=parked)
    return RemoteResult(elapsed_s, is_done=True)


async def _find_letter(
    broker: Broker, name: str, message: Message, behind: int
) -> DeadLetter | None:
    scan = stored.scan(broker, DEAD_LETTERS, f"dead_letters.{name}", first=behind + 1)
    async for copy in scan:
        letter = await DeadLetters(broker).get(copy.sequence)
        if letter is not None and letter.message.origin == message.origin:
            return letter
    return None


async def _find_parked(broker: Broker, name: str, message: Message, behind: int) -> Parked | None:
    async for parked in Mailbox(broker).list_parked(name):
        if parked.sequence > behind and parked.message.origin == message.origin:
            return parked
    return None


def _refusal(name: str, wrong: str, remedy: str) -> ConfigError:
    return ConfigError([Problem(f"function {name}", "", wrong, remedy)])
