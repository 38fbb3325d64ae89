"""Turns the messages of a stream into test cases."""

import asyncio
import base64
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.broker import stored
from runtime.broker.connection import Broker
from runtime.errors import RuntimeFault
from runtime.message import Message
from runtime.testing.errors import TestKitError

MOST_CASES = 100
"""The most messages that are read unless the test asks for more."""


@dataclass(frozen=True, slots=True)
class Case:
    """A stored message, for `call` and `TestHost.publish`.

    Attributes:
        message: the message as its stream has stored it.
    """

    message: Message

    def __str__(self) -> str:
        return f"{self.message.stream}:{self.message.sequence}"


def recorded(
    stream: str,
    *,
    file: str | Path | None = None,
    server: str | None = None,
    subject: str = ">",
    first: int = 1,
    last: int | None = None,
    limit: int = MOST_CASES,
) -> list[Case]:
    """The messages of a stream as cases, oldest first, for `pytest.mark.parametrize`.

    With `file` the messages are read from the server once and written to the file; from then on
    they come from the file, and the tests need no server. The file holds payloads and headers.

    Args:
        stream: the stream's name.
        file: where the cases are kept, one JSON object a line.
        server: the server's address; NATS_URL unless given.
        subject: only messages on this subject, which may have wildcards.
        first: sequence of the first message.
        last: sequence of the last message; the stream's last unless given.
        limit: the most messages.

    Raises:
        TestKitError: there is no server to read from, it does not answer, or nothing was found.
    """
    kept = Path(file) if file is not None else None
    if kept is not None and kept.exists():
        return list(_read(kept))
    url = server or os.environ.get("NATS_URL")
    if not url:
        raise TestKitError(
            f"the messages of {stream} are not recorded yet: give a server, or set NATS_URL"
        )
    cases = _apart(url, _Range(stream, subject, first, last, limit))
    if not cases:
        raise TestKitError(f"stream {stream} has no message on {subject} from {first} on")
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(_document(each.message)) for each in cases]
        kept.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return cases


@dataclass(frozen=True, slots=True)
class _Range:
    stream: str
    subject: str
    first: int
    last: int | None
    limit: int


def _read(file: Path) -> Iterator[Case]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            found["data"] = base64.b64decode(found["data"])
            yield Case(Message(**found))
        except (ValueError, KeyError, TypeError):
            raise TestKitError(
                f"{file}:{number} is not a recorded message; delete the file to record again"
            ) from None


def _document(message: Message) -> dict[str, Any]:
    return {
        "stream": message.stream,
        "sequence": message.sequence,
        "subject": message.subject,
        "headers": dict(message.headers),
        "data": base64.b64encode(message.data).decode(),
        "stored_at_ns": message.stored_at_ns,
    }


def _apart(url: str, wanted: _Range) -> list[Case]:
    """Read in a thread with a loop of its own: a caller may be inside a loop."""
    done: list[list[Case] | Exception] = []

    def run() -> None:
        try:
            done.append(asyncio.run(_fetch(url, wanted)))
        except RuntimeFault as failure:
            told = f"the messages of {wanted.stream} cannot be read: {failure}"
            done.append(TestKitError(told))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    [found] = done
    if isinstance(found, Exception):
        raise found
    return found


async def _fetch(url: str, wanted: _Range) -> list[Case]:
    broker = await Broker.connect(url, name="test")
    found: list[Case] = []
    try:
        async for message in stored.scan(
            broker, wanted.stream, wanted.subject, first=wanted.first, last=wanted.last
        ):
            found.append(Case(message))
            if len(found) >= wanted.limit:
                break
    finally:
        await broker.close()
    return found
