"""Merges the metrics and the readiness of several worker processes.

Each worker's `AdminServer` listens on a Unix socket, and the supervisor asks every worker.
"""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from runtime.observe.health import Probe
from runtime.observe.logs import get_logger

log = get_logger("runtime.observe.aggregate")

ANSWER_TIMEOUT_S = 2.0
SUPERVISOR = "supervisor"


async def _ask(socket_path: Path, target: str) -> httpx.Response:
    transport = httpx.AsyncHTTPTransport(uds=str(socket_path))
    async with httpx.AsyncClient(transport=transport, timeout=ANSWER_TIMEOUT_S) as client:
        return await client.get(f"http://worker{target}")


def probe_name(worker: str) -> str:
    """The name of the probe for a worker's readiness."""
    return f"worker-{worker}"


def readiness_of(socket_path: Path) -> Probe:
    """A probe that passes when the worker on this socket is ready."""

    async def probe() -> str | None:
        try:
            answer = await _ask(socket_path, "/readyz")
        except httpx.HTTPError:
            return "UNREACHABLE"
        return None if answer.is_success else "NOT_READY"

    return probe


async def merged_metrics(own: CollectorRegistry, workers: Mapping[str, Path]) -> bytes:
    """One exposition, each series with its worker's label; a silent worker is left out."""
    names = list(workers)
    found = await asyncio.gather(*(_metrics_of(name, workers[name]) for name in names))
    texts = {SUPERVISOR: generate_latest(own).decode()}
    texts.update((name, text) for name, text in zip(names, found, strict=True) if text)
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return generate_latest(registry)


async def _metrics_of(name: str, socket_path: Path) -> str:
    try:
        return (await _ask(socket_path, "/metrics")).raise_for_status().text
    except httpx.HTTPError as failure:
        log.warning("A worker's metrics are missing", worker=name, reason=type(failure).__name__)
        return ""


class _Merged(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for worker, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    merged.add_sample(
                        sample.name, {**sample.labels, "worker": worker}, sample.value
                    )
        return iter(families.values())
