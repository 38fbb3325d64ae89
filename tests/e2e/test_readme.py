"""The README's commands, run as written."""

import asyncio
import html
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.documentation import (
    ROOT,
    free_port,
    is_shown,
    read_blocks,
    read_commands,
    run_until_shown,
    serving,
    write_files,
)
from tests.support.servers import remove

PAGE = ROOT / "README.md"
DEMO = ROOT / "docs" / "demo.md"

RUN = ("nats", "sed")
PORTS = (
    "RUNTIME_NATS_PORT",
    "RUNTIME_MONITOR_PORT",
    "RUNTIME_MQTT_PORT",
    "RUNTIME_ADMIN_PORT",
    "GATEWAY_PORT",
)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="runtime-test-readme-"))
    # When the test runs as root, PostgreSQL runs as another user, which must traverse the folder.
    made.chmod(0o711)
    yield made
    remove(made)


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """Free ports, and a data directory apart from that of `make run`."""
    ports = {name: str(free_port()) for name in PORTS}
    return {**ports, "RUNTIME_DATA_DIR": str(folder / ".runtime")}


def blurred(text: str) -> str:
    """The text without numbers, times and random ids, which differ between runs."""
    return re.sub(r"[0-9a-f]+", "0", text)


def test_the_readme_is_short() -> None:
    assert len(PAGE.read_text("utf-8").splitlines()) <= 120


def test_every_make_target_exists() -> None:
    commands = read_commands(PAGE) + read_commands(DEMO)
    targets = {words[1] for line, _ in commands if (words := line.split())[0] == "make"}
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert targets == {"run", "test", "demo"}
    assert targets <= {line.split()[0] for line in told.stdout.splitlines()}


def test_the_commands_are_those_that_the_tests_here_follow() -> None:
    programs = {line.split()[0] for line, _ in read_commands(PAGE)}

    assert programs == {"make", "nats", "sed", ".venv/bin/runtime"}


def test_the_demonstration_shows_what_the_page_shows(environment: dict[str, str]) -> None:
    [shown] = [block.text for block in read_blocks(DEMO) if block.language == "text"]
    environment |= {"WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "DEMO_RECEIVER_PORT": "0"}
    with serving(ROOT, "manifests/", environment=environment):
        done = subprocess.run(
            [sys.executable, "-m", "demo"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "COLUMNS": "110", **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    assert done.returncode == 0, done.stdout + done.stderr
    assert squeezed(done.stdout) == squeezed(shown)


def squeezed(text: str) -> list[str]:
    """The blurred text without the widths of columns, which depend on the ids."""
    lines = [re.sub(r"[\s─━]+", " ", blurred(line)).strip() for line in text.splitlines()]
    return [line for line in lines if line]


@pytest.mark.nats_cli
async def test_the_first_function_does_what_the_readme_says(
    folder: Path, environment: dict[str, str], nats_cli: Callable[..., str]
) -> None:
    write_files(PAGE, folder)
    [serve] = [
        line for line, _ in read_commands(PAGE) if line.startswith(".venv/bin/runtime serve")
    ]
    follow = [(line, told) for line, told in read_commands(PAGE) if line.split()[0] in RUN]
    url = f"nats://127.0.0.1:{environment['RUNTIME_NATS_PORT']}"

    def run(line: str) -> str:
        return nats_cli(url, *shlex.split(line)[1:])

    with serving(folder, *shlex.split(serve)[2:], environment=environment) as served:
        for line, told in follow:
            if line.startswith("sed "):
                await asyncio.to_thread(subprocess.run, shlex.split(line), cwd=folder, check=True)
                await asyncio.to_thread(served.wait_for, "Swapped")
                continue
            printed = await asyncio.to_thread(run_until_shown, run, line, told)
            assert is_shown(told, printed), f"{line} printed:\n{printed}"


def test_the_picture_is_of_the_readmes_function() -> None:
    picture = (ROOT / "docs" / "terminal.svg").read_text("utf-8")
    shown = html.unescape(re.sub(r"<[^>]*>", "", picture)).replace("\xa0", " ")

    assert "docs/terminal.svg" in PAGE.read_text("utf-8")
    for words in ("runtime serve hello.yaml --reload", "Ready", "Not reloaded", "Swapped"):
        assert words in shown
    assert "http://cdn" not in picture
    assert "https://" not in picture


def test_the_first_functions_manifest_passes_the_check(folder: Path) -> None:
    write_files(PAGE, folder)
    done = subprocess.run(
        [Path(sys.executable).parent / "runtime", "check", "hello.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1 stream, 1 function: OK\n")
