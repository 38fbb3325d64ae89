"""Does what docs/tutorial.md says: each block in turn, against one host on a terminal."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.documentation import (
    ROOT,
    RUNTIME,
    Block,
    commands_of,
    free_port,
    is_shown,
    read_blocks,
    run_until_shown,
)
from tests.support.servers import remove
from tests.support.terminal import OnTerminal, on_terminal

PAGE = ROOT / "docs" / "tutorial.md"
PORTS = (
    "RUNTIME_NATS_PORT",
    "RUNTIME_MONITOR_PORT",
    "RUNTIME_MQTT_PORT",
    "RUNTIME_ADMIN_PORT",
)
INSTALLING = ("mkdir", "python3", "pip")

pytestmark = pytest.mark.nats_cli


class Tutorial:
    """A reader of the page, with two terminals."""

    def __init__(self, folder: Path, stack: ExitStack, nats_cli: Callable[..., str]) -> None:
        self._folder = folder
        self._stack = stack
        self._nats_cli = nats_cli
        self._host: OnTerminal | None = None
        self._shown = 0
        self.environment = {name: str(free_port()) for name in PORTS}

    def follow(self, block: Block) -> None:
        """Do what the block says."""
        if block.name:
            (self._folder / block.name).write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            for line, expected in commands_of(block):
                if line.split()[0] not in INSTALLING:
                    self._run(line, expected)
        else:
            self._watch(block.text)

    def stop(self) -> int:
        """Press Ctrl-C in the host's terminal."""
        assert self._host is not None
        self._host.press_ctrl_c()
        return self._host.wait_until_ended()

    def _run(self, line: str, expected: list[str]) -> None:
        if line.startswith("runtime serve"):
            self._serve(shlex.split(line)[1:])
            return
        printed = run_until_shown(self._print, line, expected)
        assert is_shown(expected, printed), f"{line} printed:\n{printed}"

    def _serve(self, arguments: list[str]) -> None:
        self._host = self._stack.enter_context(
            on_terminal(
                [RUNTIME, *arguments],
                columns=100,
                folder=self._folder,
                environment={"PATH": os.environ["PATH"], **self.environment},
            )
        )

    def _print(self, line: str) -> str:
        program, *arguments = shlex.split(line)
        if program == "nats":
            url = f"nats://127.0.0.1:{self.environment['RUNTIME_NATS_PORT']}"
            return self._nats_cli(url, *arguments)
        if program == "pytest":
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        else:
            command = [str(RUNTIME), *arguments]
        done = subprocess.run(
            command,
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "COLUMNS": "110", **self.environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done.stdout + done.stderr

    def _watch(self, text: str) -> None:
        """Wait until the host's terminal shows the text after what it showed before."""
        assert self._host is not None
        self._shown = self._host.wait_for_words(text, after=self._shown)


@pytest.fixture
def tutorial(nats_cli: Callable[..., str]) -> Iterator[Tutorial]:
    folder = Path(tempfile.mkdtemp(prefix="runtime-test-tutorial-"))
    # When the test runs as root, the servers run as another user, which must traverse the folder.
    folder.chmod(0o711)
    with ExitStack() as stack:
        yield Tutorial(folder, stack, nats_cli)
    remove(folder)


def test_the_tutorial_goes_as_it_says(tutorial: Tutorial) -> None:
    for block in read_blocks(PAGE):
        tutorial.follow(block)

    assert tutorial.stop() == 0


def test_the_tutorial_takes_its_reader_ten_minutes() -> None:
    """At 150 words and a command in 10 seconds, and a block of code that is copied in 20."""
    text = PAGE.read_text("utf-8")
    prose = len(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).split())
    blocks = read_blocks(PAGE)
    commands = sum(len(commands_of(block)) for block in blocks if block.language == "console")
    files = sum(bool(block.name) for block in blocks)

    assert prose / 150 + commands / 6 + files / 3 < 10
