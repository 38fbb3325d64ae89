"""`python -m benchmarks`: runs every benchmark and its peer, and prints one table."""

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path

import uvloop

from benchmarks import (
    doing_nothing,
    fairness,
    gateway,
    ingesting,
    matching,
    reloading,
    starting,
    webhooks,
)
from benchmarks import messages as accepting
from benchmarks.consumption import UNCOUNTED
from benchmarks.servers import Servers, serving, temporary_directory
from benchmarks.table import Comparison, Reloads, Waits, print_results
from runtime.observe.logs import configure_logs

MESSAGES, ROUNDS = 100_000, 5
QUICK_MESSAGES, QUICK_ROUNDS = 30_000, 1
DELIVERY_SHARE = 4
ACCEPTED_SHARE = 20
POSTED_SHARE = 5


async def _compare(
    directory: Path, messages: int, rounds: int
) -> tuple[list[Comparison], list[Waits], Reloads]:
    filled = messages + 2 * UNCOUNTED
    async with serving(directory) as servers:
        print(_versions(servers), flush=True)
        print(f"a function that does nothing: {messages:,} messages counted each round", flush=True)
        comparisons = await doing_nothing.measure(servers, filled, rounds)
        print(f"ingest: {messages:,} messages counted each round", flush=True)
        comparisons.append(await ingesting.measure(servers, filled, rounds))
        deliveries = messages // DELIVERY_SHARE
        print(f"webhooks: {deliveries:,} jobs each round", flush=True)
        comparisons.append(await webhooks.measure(servers, deliveries + 2 * UNCOUNTED, rounds))
        accepted = messages // ACCEPTED_SHARE
        print(f"messages: {accepted:,} accepted each round", flush=True)
        comparisons.append(await accepting.measure(servers, accepted, rounds))
        posted = messages // POSTED_SHARE
        print(f"gateway: {posted:,} messages of devices each round", flush=True)
        comparisons.append(await gateway.measure(servers, posted, rounds))
        print(f"a quiet tenant beside {fairness.FLOOD:,} messages of another", flush=True)
        waits = await fairness.measure(servers)
        print(f"reload: {reloading.SAVES} saves of a file", flush=True)
        reloads = await reloading.measure(servers)
    return comparisons, waits, reloads


def _versions(servers: Servers) -> str:
    nats_server = ".".join(str(part) for part in servers.broker.server_version)
    return (
        f"{os.cpu_count()} processors, Python {platform.python_version()},"
        f" nats-server {nats_server}, FastStream {version('faststream')}"
    )


def main() -> None:
    """Measure and print. A slow result is not a failure; a stall or a wrong count is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    quick = parser.parse_args().quick
    messages, rounds = (QUICK_MESSAGES, QUICK_ROUNDS) if quick else (MESSAGES, ROUNDS)
    configure_logs("ERROR", "auto")
    with temporary_directory() as directory:
        comparisons, waits, reloads = uvloop.run(_compare(directory, messages, rounds))
        print("start", flush=True)
        start = starting.measure(directory, rounds)
    print_results(comparisons, waits, start, reloads, matching.measure())


if __name__ == "__main__":
    main()
