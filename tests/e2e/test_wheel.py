"""docs/installing.md, run in an empty folder with the installed wheel and no checkout."""

import json
import os
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from runtime.cli.manifests import SHIPPED, shipped_manifests
from runtime.manifest import read
from runtime.process.placeholders import placeholders
from runtime.settings import HostSettings
from tests.support.documentation import ROOT, free_port, read_blocks, serving, write_files
from tests.support.servers import remove

PAGE = ROOT / "docs" / "installing.md"
PORTS = ("RUNTIME_NATS_PORT", "RUNTIME_MONITOR_PORT", "RUNTIME_MQTT_PORT", "GATEWAY_PORT")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program folder of an environment with the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=240)
    [wheel] = folder.glob("*.whl")
    place = folder / "venv"
    venv.create(place)
    [site] = place.glob("lib/python*/site-packages")
    # The dependencies, but not the checkout: a `.pth` file adds a folder without the `.pth` in it.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
    pip += [str(place / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, timeout=240)
    return place / "bin"


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="runtime-test-wheel-"))
    # When the test runs as root, PostgreSQL runs as another user, which must traverse the folder.
    made.chmod(0o711)
    yield made
    remove(made)


@pytest.fixture
def environment() -> dict[str, str]:
    # The dependencies' nats-server program is beside this environment's Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, **{name: str(free_port()) for name in PORTS}}


def documented(program: str) -> list[str]:
    """The arguments of the page's command that runs this program."""
    lines = [
        line[2:]
        for block in read_blocks(PAGE)
        for line in block.text.splitlines()
        if block.language == "console" and line.startswith("$ ")
    ]
    [found] = [line for line in lines if line.split()[:2] == program.split()]
    return shlex.split(found)


def test_the_runtime_of_the_wheel_is_not_the_checkout(installed: Path, folder: Path) -> None:
    told = subprocess.run(
        [installed / "python", "-c", "import functions.ingest, runtime; print(runtime.__file__)"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )

    assert Path(told.stdout.strip()).is_relative_to(installed.parent)


def test_a_source_distribution_has_the_shipped_manifests_too(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=240)
    [archive] = tmp_path.glob("*.tar.gz")

    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {f"runtime/shipped_manifests/{path.name}" for path in SHIPPED.iterdir()} <= names


def test_the_wheel_makes_a_project_whose_function_runs(installed: Path, folder: Path) -> None:
    program = installed / "runtime"
    subprocess.run([program, "new", "project", "shop"], cwd=folder, check=True, capture_output=True)
    told = subprocess.run(
        [program, "invoke", "greet", "--data", '{"id": "a1", "value": 1}'],
        cwd=folder / "shop",
        capture_output=True,
        text=True,
        check=True,
    )

    assert told.stdout.startswith("ack, ")


def test_an_endpoint_in_an_empty_folder_is_served_by_the_backbones_gateway(
    installed: Path, folder: Path, environment: dict[str, str]
) -> None:
    write_files(PAGE, folder)
    _, _, *arguments = documented(".venv/bin/runtime serve")
    assert arguments == ["my.yaml", "--with", "backbone"]

    program = installed / "runtime"
    with serving(folder, *arguments, environment=environment, program=program) as served:
        shipped = read(shipped_manifests(["backbone"]), placeholders(HostSettings()))
        assert served.wait_for("Ready")["functions"] == len(shipped.functions) + 1
        asked = documented("curl -s")[-1].replace("8080", environment["GATEWAY_PORT"])
        answer = httpx.get(asked)
        shown = httpx.get(f"http://127.0.0.1:{environment['GATEWAY_PORT']}/openapi.json")

    assert (answer.status_code, answer.json()) == (200, {"text": "Hello, Ada!"})
    [said] = [block.text for block in read_blocks(PAGE) if "$ curl" in block.text]
    assert json.loads(said.splitlines()[-1]) == answer.json()
    assert "/api/v1/tenants/{tenant_id}/devices" in shown.json()["paths"]


def test_the_gateway_alone_serves_an_endpoint_that_runs_in_other_processes(
    installed: Path, folder: Path, environment: dict[str, str]
) -> None:
    write_files(PAGE, folder)
    arguments = ["my.yaml", "--with", "gateway", "--workers", "2"]

    program = installed / "runtime"
    with serving(folder, *arguments, environment=environment, program=program) as served:
        served.wait_for("Ready", worker="1")
        served.wait_for("Ready", worker="2")
        asked = documented("curl -s")[-1].replace("8080", environment["GATEWAY_PORT"])
        answer = httpx.get(asked)

    assert answer.json() == {"text": "Hello, Ada!"}
