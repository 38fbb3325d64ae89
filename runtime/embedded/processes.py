"""Launches server processes, and finds those that a killed host left running."""

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
    """The user that a server runs as, when it must not be the host's own.

    Attributes:
        capability: number of the only Linux capability that it keeps, or None.
    """

    user: int
    group: int
    capability: int | None = None


def launch_command(
    program: Sequence[str | Path], *, death_signal: signal.Signals, identity: Identity | None = None
) -> list[str]:
    """The command line that runs `program` and ends it with this process.

    On Linux the server gets `death_signal` when the thread that started it ends, also when the host
    is killed by SIGKILL. So start it from the thread that lives longest.
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

    The absolute path of the host's configuration or data directory as the argument proves that a
    process is the host's own. A process id on disk could belong to another process by now.
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
    """End the processes that `find_orphans` finds and wait for their end. Blocks; for a thread."""
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
    """Whether a process has ended, even if no parent has collected its exit status.

    For an orphan that is the task of the system's first process, which in many containers does not
    do it.
    """
    try:
        status: str = process.status()
    except psutil.NoSuchProcess:
        return True
    return status == psutil.STATUS_ZOMBIE
