"""`runtime new` from an empty folder to a served, tested function, by the new README's words."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documentation import ROOT, RUNTIME, free_port, read_blocks, serving
from tests.support.servers import remove

KINDS = ("batch", "endpoint", "schedule", "service", "route")
LIMIT_S = 120.0
"""The time from an empty folder to a served, tested function."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    remove(tmp_path / "shop" / ".runtime")


def _run(*command: str | Path, folder: Path, **environment: str) -> str:
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": programs, "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_what_every_kind_makes_passes_its_tests_and_strict_types(folder: Path) -> None:
    _run(RUNTIME, "new", "project", "shop", folder=folder)
    project = folder / "shop"
    for kind in KINDS:
        _run(RUNTIME, "new", kind, f"a_{kind}", folder=project)

    tested = _run("make", "test", folder=project)
    checked = _run(RUNTIME, "check", "manifests", "--with", "routes", folder=project)
    # With what `make check` has kept of the runtime's own modules, it takes seconds.
    typed = _run("mypy", "--cache-dir", ROOT / ".mypy_cache", folder=project)
    _run("ruff", "check", "--no-cache", ".", folder=project)

    assert re.search(r"1\d passed", tested)
    assert "functions: OK" in checked
    assert "no issues found" in typed


def test_an_empty_folder_becomes_a_served_tested_function_within_two_minutes(folder: Path) -> None:
    began_s = time.monotonic()
    _run(RUNTIME, "new", "project", "shop", folder=folder)
    project = folder / "shop"
    ports = {name: str(free_port()) for name in ("NATS", "MONITOR", "MQTT", "ADMIN")}
    environment = {f"RUNTIME_{name}_PORT": port for name, port in ports.items()}
    commands = [
        shlex.split(line.removeprefix("$ "))
        for block in read_blocks(project / "README.md")
        if block.language == "console"
        for line in block.text.splitlines()
    ]

    assert commands[:2] == [["make", "test"], ["make", "dev"]]
    assert "2 passed" in _run(*commands[0], folder=project)
    [told] = [
        line for line in (project / "Makefile").read_text().splitlines() if "--reload" in line
    ]
    assert told.endswith("runtime serve manifests/ --reload")
    with serving(project, "manifests/", "--reload", environment=environment):
        asked = _run(*commands[2], folder=project, **environment)
        listed = _run(*commands[3], folder=project, **environment)
    elapsed_s = time.monotonic() - began_s

    assert commands[2][:4] == ["runtime", "invoke", "greet", "--remote"]
    assert asked.startswith("done, ")
    assert commands[3] == ["runtime", "ls"]
    assert re.search(r"^greet +consumer", listed, re.MULTILINE)
    assert elapsed_s < LIMIT_S

    refused = subprocess.run(
        [RUNTIME, *commands[4][1:]], cwd=project, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 3
    assert refused.stdout.startswith("dead letter VALUE_NEGATIVE")
    assert commands[5] == ["runtime", "new", "endpoint", "hello"]
    _run(*commands[5], folder=project)
    assert "2 functions: OK" in _run(*commands[6], folder=project)
