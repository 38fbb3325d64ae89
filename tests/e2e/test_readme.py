"""The README's commands, run as written."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.documentation import ROOT, Block, free_port, read_blocks, serving, write_files
from tests.support.servers import remove

PAGE = ROOT / "README.md"

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


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """Each command after a `$`, and the output that the page shows."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def every_command() -> list[tuple[str, list[str]]]:
    blocks = [block for block in read_blocks(PAGE) if block.language == "console"]
    return [command for block in blocks for command in commands(block)]


def blurred(text: str) -> str:
    """The text without numbers, times and random ids, which differ between runs."""
    return re.sub(r"[0-9a-f]+", "0", text)


def test_every_make_target_exists() -> None:
    targets = {words[1] for line, _ in every_command() if (words := line.split())[0] == "make"}
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert targets == {"run", "test", "demo"}
    assert targets <= {line.split()[0] for line in told.stdout.splitlines()}


def test_the_commands_are_those_that_the_tests_here_follow() -> None:
    programs = {line.split()[0] for line, _ in every_command()}

    assert programs == {"make", "nats", ".venv/bin/runtime"}


def test_the_demonstration_shows_what_the_readme_shows(environment: dict[str, str]) -> None:
    [shown] = [block.text for block in read_blocks(PAGE) if block.language == "text"]
    environment |= {"WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "DEMO_RECEIVER_PORT": "0"}
    with serving(ROOT, "manifests/", environment=environment):
        done = subprocess.run(
            [sys.executable, "-m", "demo"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "COLUMNS": "110", **environment},
            capture_output=True,
            text=True,
            timeout=90,
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
    [serve] = [line for line, _ in every_command() if line.startswith(".venv/bin/runtime serve")]
    manifest = shlex.split(serve)[2]
    asked = [(line, told) for line, told in every_command() if line.startswith("nats ")]
    # The host's log line after the first, and after the third command.
    effects = iter(("Greeted", "Message given up to the dead letters"))
    url = f"nats://127.0.0.1:{environment['RUNTIME_NATS_PORT']}"

    with serving(folder, manifest, environment=environment) as served:
        for line, told in asked:
            printed = await asyncio.to_thread(nats_cli, url, *shlex.split(line)[1:])
            assert lines_of(printed) == lines_of("\n".join(told)), line
            if " req " in line:
                await asyncio.to_thread(served.wait_for, next(effects))
    assert next(effects, None) is None


def lines_of(text: str) -> list[str]:
    """The blurred lines, sorted, since the command line prints headers in any order."""
    kept = [blurred(line) for line in text.splitlines() if line.strip()]
    return sorted(re.sub(r"\(.*\)", "", line) for line in kept)


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
