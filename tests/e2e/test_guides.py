"""Serves the functions of docs/guides/ in one host, and runs every command as the pages show it."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.documentation import (
    ROOT,
    RUNTIME,
    free_port,
    is_shown,
    read_blocks,
    read_commands,
    run_until_shown,
    serving,
    write_files,
)
from tests.support.servers import NatsServer, PostgresServer, remove, run_apart

GUIDES = ROOT / "docs" / "guides"
# The page about route types has a host and a test of its own.
PAGES = sorted(page for page in GUIDES.glob("*.md") if page.name != "route-types.md")

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
            timeout=240,
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_guide_prints_what_the_guide_shows(page: Path, project: Project) -> None:
    printed = ""
    for line, expected in read_commands(page):
        command = line
        if line == "runtime dlq show 1":
            command = f"runtime dlq show {printed.splitlines()[1].split()[0]}"
        printed = run_until_shown(project.run, command, expected)
        assert is_shown(expected, printed), f"{command} printed:\n{printed}"


def test_every_block_of_the_guides_is_a_file_or_commands() -> None:
    for page in PAGES:
        for block in read_blocks(page):
            assert block.name or block.language == "console", f"{page.name}: {block.text}"
