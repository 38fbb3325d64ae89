"""Names of functions for a shell's completion: quick, and silent when there are none."""

import asyncio
import os
from collections.abc import Iterable

import uvloop

from runtime.broker.connection import Broker
from runtime.broker.function_consumers import find_consumers
from runtime.cli.instances import ask_hosts
from runtime.cli.one_function import DEFAULT
from runtime.embedded.credentials import find_nats
from runtime.errors import RuntimeFault
from runtime.manifest import read_what_is_right
from runtime.observe.logs import configure_logs
from runtime.process.placeholders import with_placeholders
from runtime.settings import HostSettings

CONNECT_S = 0.3
ANSWERS_S = 0.2
LIMIT_S = 1.0
"""How long the shell may wait for the server, in all."""


def find_names(nats_url: str | None, *, is_local: bool) -> list[str]:
    """The functions that the server knows, sorted, with those of the current folder if asked."""
    configure_logs("ERROR")
    try:
        settings = HostSettings.from_environment(os.environ)
        url = nats_url or os.environ.get("NATS_URL") or find_nats(settings).url
        names = set(uvloop.run(_ask(url)))
    except (RuntimeFault, OSError, TimeoutError):
        names = set()
    return sorted(names | (set(_local_names()) if is_local else set()))


async def _ask(url: str) -> Iterable[str]:
    async with asyncio.timeout(LIMIT_S):
        broker = await Broker.connect(url, name="runtime completion", timeout_s=CONNECT_S)
        try:
            consumers, hosts = await asyncio.gather(
                find_consumers(broker), ask_hosts(broker, ANSWERS_S)
            )
        finally:
            await broker.close()
    return [*consumers, *(each.function for each in hosts)]


def _local_names() -> Iterable[str]:
    if not DEFAULT.is_dir():
        return []
    environment = with_placeholders(HostSettings(), os.environ)
    return read_what_is_right([DEFAULT], environment).manifest.functions
