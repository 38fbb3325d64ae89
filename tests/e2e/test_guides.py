"""Serves the functions of docs/guides/ in one host, and runs every command as the pages show it."""

import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.documentation import (
    ROOT,
    RUNTIME,
    free_port,
    read_blocks,
    read_commands,
    serving,
    write_files,
)
from tests.support.servers import NatsServer, PostgresServer, remove, run_apart

GUIDES = ROOT / "docs" / "guides"
PAGES = sorted(GUIDES.glob("*.md"))
DEADLINE_S = 40.0

pytestmark = pytest.mark.nats_cli


@dataclass(frozen=True, slots=True)
class Project:
    """The guides' files, served."""

    folder: Path
    url: str
    environment: dict[str, str]
    nats_cli: Callable[..., str]

    def run(self, line: str) -> str:
        """What the command prints."""
        for variable, port in (("GATEWAY_PORT", "8080"), ("DOORBELL_PORT", "8090")):
            line = line.replace(f":{port}", f":{self.environment[variable]}")
        program, *arguments = shlex.split(line)
        if program == "nats":
            return self.nats_cli(self.url, *arguments)
        if program == "runtime":
            program = str(RUNTIME)
        done = subprocess.run(
            [program, *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "COLUMNS": "150", **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(
    nats_server: NatsServer, postgres_server: PostgresServer, nats_cli: Callable[..., str]
) -> Iterator[Project]:
    run_apart(lambda: postgres_server.make_database("guides"))
    folder = Path(tempfile.mkdtemp(prefix="runtime-test-guides-"))
    for page in PAGES:
        write_files(page, folder)
    environment = {
        "NATS_URL": nats_server.url,
        "DATABASE_URL": postgres_server.dsn("guides"),
        "MAIL_PASSWORD": "hidden-password",
        "ADMIN_KEY": "the-key-of-the-admin",
        "GATEWAY_PORT": str(free_port()),
        "DOORBELL_PORT": str(free_port()),
    }
    with serving(folder, ".", "--with", "gateway", environment=environment):
        yield Project(folder, nats_server.url, environment, nats_cli)
    run_apart(lambda: postgres_server.administer("DROP DATABASE guides WITH (FORCE)"))
    remove(folder)


def changes_something(line: str) -> bool:
    """Whether a command must run once only."""
    return re.match(r"nats (pub|req)|runtime (replay|apply|.* (redrive|run-now))", line) is not None


def is_shown(expected: list[str], printed: str) -> bool:
    """Whether the page's lines are printed in order, but for numbers and for what … leaves out."""
    text, at = blurred(printed), 0
    for part in blurred("\n".join(expected)).split("…"):
        if (at := text.find(part.strip(), at)) < 0:
            return False
        at += len(part.strip())
    return True


def blurred(text: str) -> str:
    """The text without numbers and widths of columns."""
    return " ".join(re.sub(r"\d+", "0", text).split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_guide_prints_what_the_guide_shows(page: Path, project: Project) -> None:
    printed = ""
    for line, expected in read_commands(page):
        command = line
        if line == "runtime dlq show 1":
            command = f"runtime dlq show {printed.splitlines()[1].split()[0]}"
        until = time.monotonic() + DEADLINE_S
        printed = run_until_shown(project, command, expected, until)
        assert is_shown(expected, printed), f"{command} printed:\n{printed}"


def run_until_shown(project: Project, line: str, expected: list[str], until: float) -> str:
    """Run a command, one that changes nothing again and again until it prints what is expected."""
    while True:
        is_last = changes_something(line) or time.monotonic() > until
        try:
            printed = project.run(line)
        except AssertionError:
            if is_last:
                raise
        else:
            if is_last or is_shown(expected, printed):
                return printed


def test_every_block_of_the_guides_is_a_file_or_commands() -> None:
    for page in PAGES:
        for block in read_blocks(page):
            assert block.name or block.language == "console", f"{page.name}: {block.text}"
