"""Reads the documents' code blocks and tables, and serves the projects that they show."""

import asyncio
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.broker.connection import Broker
from runtime.message import Message

ROOT = Path(__file__).parents[2]
RUNTIME = Path(sys.executable).parent / "runtime"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
_DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `name` is the file named in its first line, or empty."""

    language: str
    text: str
    name: str


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    blocks = []
    for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        named = _FILE.match(text)
        blocks.append(Block(language, text, named[1] if named else ""))
    return blocks


def write_files(page: Path, folder: Path) -> list[str]:
    """Write every block that names a file, and return the names."""
    names = []
    for block in read_blocks(page):
        if block.name:
            assert block.name not in names, f"{page.name} has {block.name} twice"
            names.append(block.name)
            path = folder / block.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
    return names


def commands_of(block: Block) -> list[tuple[str, list[str]]]:
    """Each command after a `$` in a console block, and the output that the page shows below it."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def read_commands(page: Path) -> list[tuple[str, list[str]]]:
    """The commands of all console blocks of a page."""
    blocks = [block for block in read_blocks(page) if block.language == "console"]
    return [command for block in blocks for command in commands_of(block)]


def run_until_shown(run: Callable[[str], str], line: str, expected: list[str]) -> str:
    """What a command prints; one that changes nothing runs until it prints what the page shows."""
    once = re.match(r"nats (pub|req)|runtime (replay|apply|.* (redrive|run-now))|pytest", line)
    until = time.monotonic() + _DEADLINE_S
    while True:
        is_last = once is not None or time.monotonic() > until
        try:
            printed = run(line)
        except AssertionError:
            if is_last:
                raise
        else:
            if is_last or is_shown(expected, printed):
                return printed


def is_shown(expected: list[str], printed: str) -> bool:
    """Whether the page's lines are printed in order, but for numbers and for what … leaves out."""
    text, at = _blurred(printed), 0
    for part in _blurred("\n".join(expected)).split("…"):
        if (at := text.find(part.strip(), at)) < 0:
            return False
        at += len(part.strip())
    return True


def _blurred(text: str) -> str:
    """The text without numbers and widths of columns."""
    return " ".join(re.sub(r"\d+", "0", text).split())


def read_table(page: Path, heading: str) -> list[list[str]]:
    """The rows, without the header, of the first table below a heading."""
    text = page.read_text(encoding="utf-8")
    _, found, below = text.partition(f"# {heading}\n")
    assert found, f"{page.name} has no heading {heading!r}"
    table = re.search(r"^\|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", below, re.MULTILINE)
    assert table is not None, f"no table below {heading!r}"
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in table[1].splitlines()
    ]


def in_code(text: str) -> list[str]:
    """The texts between backticks."""
    return re.findall(r"`([^`]+)`", text)


_WORKER = int("".join(filter(str.isdigit, os.environ.get("PYTEST_XDIST_WORKER", ""))) or "9") % 10
_ports = iter(range(10_000 + 2_000 * _WORKER, 12_000 + 2_000 * _WORKER))


def free_port() -> int:
    """A free port, below those that the system gives to others, and of this test process alone.

    A port that the system chose and that was given back may be another test's server by the time
    when it is used.
    """
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("all ports of this test process have been used")


class Served:
    """A `runtime serve` and the lines of its log."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._seen: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, event: str, **fields: object) -> dict[str, Any]:
        """The first log line with this sentence and these fields; waits until there is one."""
        until = time.monotonic() + _DEADLINE_S
        for line in self._seen:
            if _is(line, event, fields):
                return line
        while (left := until - time.monotonic()) > 0:
            try:
                new = self._lines.get(timeout=left)
            except queue.Empty:
                break
            if new is None:
                break
            self._seen.append(new)
            if _is(new, event, fields):
                return new
        raise AssertionError(f"{event!r} with {fields} is not in the log:\n{self._show()}")

    def count(self, event: str, **fields: object) -> int:
        """How many such lines there are so far."""
        while not self._lines.empty():
            if (line := self._lines.get()) is not None:
                self._seen.append(line)
        return sum(_is(line, event, fields) for line in self._seen)

    def stop(self) -> int:
        """Drain the host as Ctrl-C does, and return its exit code."""
        self.interrupt()
        return self.wait()

    def interrupt(self) -> None:
        """Send the signal of Ctrl-C, if the host still runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Wait until the host has ended by itself, and return its exit code."""
        code = self._process.wait(_DEADLINE_S)
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self._process.stderr is not None
        for text in self._process.stderr:
            try:
                line = json.loads(text)
            except ValueError:
                line = {"event": text.rstrip()}
            self._lines.put(line)
        self._lines.put(None)

    def _show(self) -> str:
        return "\n".join(json.dumps(line) for line in self._seen)


@contextmanager
def serving(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str],
    ready: bool = True,
    program: Path = RUNTIME,
) -> Iterator[Served]:
    """Run `runtime serve ARGUMENTS` in a folder, wait until it is ready, and stop it at the end."""
    process = subprocess.Popen(
        [program, "serve", *arguments],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "RUNTIME_ADMIN_PORT": "0",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    served = Served(process)
    try:
        if ready:
            served.wait_for("Ready")
        yield served
    finally:
        try:
            served.stop()
        except subprocess.TimeoutExpired:
            process.kill()
            served.wait()
        if process.stderr is not None:
            process.stderr.close()


class Inbox:
    """Received messages of a subscription."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self.put = self._messages.put_nowait

    async def get(self) -> Message:
        """The next message."""
        async with asyncio.timeout(_DEADLINE_S):
            return await self._messages.get()


@asynccontextmanager
async def listening(broker: Broker, subject: str) -> AsyncIterator[Inbox]:
    """An inbox for messages published on a subject from now on."""
    inbox = Inbox()
    subscription = await broker.subscribe(subject, inbox.put)
    try:
        yield inbox
    finally:
        await subscription.unsubscribe()


def _is(line: Mapping[str, Any], event: str, fields: Mapping[str, object]) -> bool:
    return line.get("event") == event and fields.items() <= line.items()
