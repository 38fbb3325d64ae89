"""Measures the time from the save of a function's file to the first answer by its new code."""

import asyncio
import time
from statistics import median

from benchmarks.servers import Servers, running
from benchmarks.table import Reloads
from runtime.errors import NoAnswer

SAVES = 50
MEDIAN_BAR_S, WORST_BAR_S = 0.150, 0.300
LIMIT_S = 60.0
_SUBJECT = "bench.reload.ask"
_MODULE = """
from runtime import Context, Event
from bench_reload_helper import VERSION

async def answer(event: Event[bytes], ctx: Context) -> bytes:
    return str(VERSION).encode()
"""
_HELPER = "VERSION = {version}\n"
_MANIFEST = f"""
functions:
  bench_reload:
    handler: bench_reload:answer
    endpoint: {{subject: {_SUBJECT}}}
"""


async def measure(servers: Servers) -> Reloads:
    """Save a helper of an endpoint's module 50 times, and call the endpoint until it is new.

    The helper is saved as editors do, by a rename. Requests follow one another without a pause, so
    the time includes the request that first meets the new code.
    """
    folder = servers.directory / "reload"
    folder.mkdir()
    (folder / "bench_reload.py").write_text(_MODULE)
    (folder / "app.yaml").write_text(_MANIFEST)
    helper = folder / "bench_reload_helper.py"
    helper.write_text(_HELPER.format(version=0))
    command = ["-P", "-m", "runtime", "serve", "app.yaml", "--reload"]
    seconds: list[float] = []
    async with running(servers, command, folder=folder):
        await _wait_for(servers, b"0")
        for version in range(1, SAVES + 1):
            new = helper.with_suffix(".tmp")
            new.write_text(_HELPER.format(version=version))
            began_s = time.perf_counter()
            new.replace(helper)
            await _wait_for(servers, str(version).encode())
            seconds.append(time.perf_counter() - began_s)
    print(f"  reload: median {median(seconds) * 1000:.0f} ms", flush=True)
    return Reloads("save to first answer by new code", seconds, MEDIAN_BAR_S, WORST_BAR_S)


async def _wait_for(servers: Servers, answer: bytes) -> None:
    """Call the endpoint until it gives this answer."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            if await _ask(servers) == answer:
                return


async def _ask(servers: Servers) -> bytes:
    try:
        return (await servers.broker.request(_SUBJECT, b"", timeout_s=5)).data
    except NoAnswer:
        await asyncio.sleep(0.05)  # It does not serve yet.
        return b""
