"""Server processes: how one is launched, and how one that a killed host left behind is found."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_LAUNCHER = Path(__file__).with_name("launcher.py")
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Identity:
    """The user a server runs as, where it must not be the host's own.

    Attributes:
        capability: number of the one Linux capability it keeps, or None.
    """

    user: int
    group: int
    capability: int | None = None


def launch_command(
    program: Sequence[str | Path], *, death_signal: signal.Signals, identity: Identity | None = None
) -> list[str]:
    """The command line that runs `program` bound to this process.

    On Linux the server gets `death_signal` when the thread that started it ends, which is at once
    for a host killed by SIGKILL; so start it from the thread that lives longest.
    """
    launch = {
        "parent": os.getpid(),
        "signal": int(death_signal),
        **(asdict(identity) if identity else {"user": None, "group": None, "capability": None}),
    }
    return [
        sys.executable,
        "-I",
        "-S",
        str(_LAUNCHER),
        json.dumps(launch),
        *(str(part) for part in program),
    ]


def find_orphans(name: str, argument: str) -> list[psutil.Process]:
    """Running processes of program `name` with `argument` as a whole argument.

    With the absolute path of our own configuration or data directory as the argument this proves
    that a process is ours, with no process id on disk that might be somebody else's by now.
    """
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"]
        if command and Path(command[0]).name == name and argument in command[1:]:
            found.append(process)
    return found


def end_orphans(
    orphans: Sequence[psutil.Process], stop_signal: signal.Signals, timeout_s: float
) -> None:
    """End what `find_orphans` found and wait until it is gone. Blocks; for a thread."""
    for number in (stop_signal, signal.SIGKILL):
        for process in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if all(has_ended(process) for process in orphans):
                return
            time.sleep(_POLL_S)


def has_ended(process: psutil.Process) -> bool:
    """Whether it runs no more, even if nobody has taken note of its end.

    For an orphan that is up to the system's first process, which in many containers does not.
    """
    try:
        status: str = process.status()
    except psutil.NoSuchProcess:
        return True
    return status == psutil.STATUS_ZOMBIE
