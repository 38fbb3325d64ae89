"""`make dev` of the repository, as somebody uses it who works on a function."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documentation import ROOT, RUNTIME, Served, free_port
from tests.support.servers import remove

PORTS = (
    "RUNTIME_NATS_PORT",
    "RUNTIME_MONITOR_PORT",
    "RUNTIME_MQTT_PORT",
    "RUNTIME_ADMIN_PORT",
    "GATEWAY_PORT",
)
FUNCTION = """\
from runtime import Context, Event


async def greet(event: Event[bytes], ctx: Context) -> bytes:
    return b"VERSION"
"""
MANIFEST = """\
functions:
  greet: {handler: "functions.hello:greet", endpoint: {subject: hello.greet}}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """The repository's Makefile and manifests beside a function of one's own."""
    made = Path(tempfile.mkdtemp(prefix="runtime-test-make-"))
    # When the test runs as root, PostgreSQL runs as another user, which must traverse the folder.
    made.chmod(0o711)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (made / name).symlink_to(ROOT / name)
    (made / ".venv").mkdir()
    (made / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    # Newer than the lock, so that nothing is installed.
    (made / ".venv" / ".installed").touch()
    shutil.copytree(ROOT / "manifests", made / "manifests")
    (made / "manifests" / "hello.yaml").write_text(MANIFEST)
    (made / "functions").mkdir()
    save(made, "first")
    yield made
    remove(made)


def save(folder: Path, version: str) -> None:
    (folder / "functions" / "hello.py").write_text(FUNCTION.replace("VERSION", version))


def host_of(make: int) -> int:
    """The process that make has started."""
    [child] = Path(f"/proc/{make}/task/{make}/children").read_text().split()
    return int(child)


def test_make_dev_serves_swaps_what_is_saved_and_ends_with_sigint(folder: Path) -> None:
    ports = {name: str(free_port()) for name in PORTS}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **ports}

    def greet() -> str:
        return subprocess.check_output(
            [str(RUNTIME), "invoke", "greet", "--remote", "--data", "{}"],
            cwd=folder,
            env=environment,
            text=True,
        )

    process = subprocess.Popen(
        ["make", "dev"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    served = Served(process)
    try:
        served.wait_for("Ready")
        assert "first" in greet()
        save(folder, "second")
        served.wait_for("Swapped", function="greet")
        assert "second" in greet()
        # To the host alone: make itself dies of the signal, and would hide the host's exit code.
        os.kill(host_of(process.pid), signal.SIGINT)
        assert served.wait() == 0
        served.wait_for("Stopped")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            served.wait()
        if process.stderr is not None:
            process.stderr.close()
