"""Runs the command line in a process of its own, against a test's server."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RUNTIME = Path(sys.executable).parent / "runtime"

SKEWED = (sys.executable, "-m", "tests.fault.skewed")
"""The program by a clock that is ahead by the seconds in the file that CLOCK_FILE names."""

_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Done:
    """The exit code and the output of a command."""

    code: int
    data: bytes
    err: str

    @property
    def out(self) -> str:
        return self.data.decode("utf-8")

    @property
    def rows(self) -> list[list[str]]:
        """The words of each line."""
        return [line.split() for line in self.out.splitlines()]

    @property
    def documents(self) -> list[dict[str, Any]]:
        """Each line as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


async def runtime(
    url: str,
    *arguments: object,
    stdin: str = "",
    folder: Path = ROOT,
    program: Sequence[str | Path] = (RUNTIME,),
    **environment: str,
) -> Done:
    """Run `runtime ARGUMENTS` with this server in its environment."""
    process = await asyncio.create_subprocess_exec(
        *program,
        *map(str, arguments),
        cwd=folder,
        env={"PATH": os.defpath, "HOME": "/nonexistent", "NATS_URL": url, **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_DEADLINE_S):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Done(process.returncode or 0, out, err.decode("utf-8"))
