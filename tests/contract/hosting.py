"""Hosts for one function: in the test's process, or in separate processes."""

import json
import signal
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from runtime.binding.ordered.leader import OrderedBinding
from runtime.message import Message
from tests.support.documentation import ROOT
from tests.support.host import eventually, running_host
from tests.support.serving import serving


@dataclass(frozen=True, slots=True)
class Served:
    """A function to serve, with a stream of its own.

    Attributes:
        url: address of the NATS server.
        function: name of the function.
        stream: name of the function's stream.
        spec: the function's entry in the manifest.
        grace_s: how long a drain waits for the function.
    """

    url: str
    function: str
    stream: str
    spec: Mapping[str, Any]
    grace_s: float

    @property
    def streams(self) -> dict[str, Any]:
        return {self.stream: {"subjects": [f"{self.stream}.>"]}}


class InProcess:
    """A host on the test's event loop."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._open = AsyncExitStack()
        self._delays_s: list[float] = []

    async def start(self) -> None:
        """Return when the host is ready."""
        served = self._served
        functions = {served.function: served.spec}
        host = running_host(served.url, functions, streams=served.streams, grace_s=served.grace_s)
        self._host = await self._open.enter_async_context(host)
        if "ordered_by" in served.spec:
            await self._note_delays()

    async def wait_until_delayed(self) -> float:
        """How many seconds a failed message of an ordered function waits for its next call."""

        async def look() -> bool:
            return bool(self._delays_s)

        await eventually(look, "a failed message")
        return self._delays_s.pop(0)

    async def end_delays(self) -> None:
        """Make delayed messages due now."""
        work = await self._leading()
        for message, timer in list(work.buffer._delays.items()):
            timer.cancel()
            work.buffer._resume(message)

    async def _note_delays(self) -> None:
        settlement = (await self._leading())._settlement
        retry_in_place = settlement._retry_in_place

        def note(message: Message, delay_s: float) -> None:
            retry_in_place(message, delay_s)
            self._delays_s.append(delay_s)

        settlement._retry_in_place = note

    async def _leading(self) -> Any:
        [binding] = [each for each in self._host.bindings if isinstance(each, OrderedBinding)]

        async def leads() -> bool:
            return binding.leads

        await eventually(leads, "a leader")
        return binding._work

    async def drain(self) -> None:
        await self._open.aclose()

    async def stop(self) -> None:
        await self._open.aclose()

    async def counted(self) -> Counter[str]:
        """How many messages were settled in which way since it started, and `timeouts`."""
        metrics = self._host._metrics.function(self._served.function)
        return +Counter({**metrics.messages, "timeouts": metrics.timeouts})


class OwnProcess:
    """`runtime serve` in a process of its own."""

    def __init__(self, served: Served, folder: Path) -> None:
        self._served = served
        self._isolated = bool(served.spec.get("isolate"))
        self._folder = folder
        self._open = AsyncExitStack()
        manifest = {"streams": served.streams, "functions": {served.function: served.spec}}
        (folder / "app.yaml").write_text(json.dumps(manifest))  # JSON is YAML.
        self._environment = {
            "NATS_URL": served.url,
            "DATABASE_URL": "unused",
            "RUNTIME_GRACE_S": str(served.grace_s),
            "PYTHONPATH": str(ROOT),
        }

    async def start(self) -> None:
        """Return when the function is ready."""
        self._process = await self._open.enter_async_context(
            serving(self._folder, **self._environment)
        )
        if self._isolated:
            started = await self._process.wait_for_line("Started")
            # Wait for the other process too: a starting process makes streams, which tests delete.
            for worker in ("1", f"isolated-{self._served.function}"):
                await self._process.wait_for_line("Ready", worker=worker)
        else:
            started = await self._process.wait_for_line("Ready")
        self._admin = started["admin"]

    async def drain(self) -> None:
        self._process.send(signal.SIGTERM)
        await self.wait_until_ended()

    async def wait_until_ended(self) -> None:
        await self._process.wait_until_ended()
        await self.stop()

    async def stop(self) -> None:
        await self._open.aclose()

    async def counted(self) -> Counter[str]:
        """How many messages were settled in which way since it started, and `timeouts`."""
        async with httpx.AsyncClient() as client:
            shown = (await client.get(f"{self._admin}/metrics")).text
        counted: Counter[str] = Counter()
        for family in text_string_to_metric_families(shown):
            for sample in family.samples:
                if sample.labels.get("function") != self._served.function:
                    continue
                if sample.name == "runtime_messages_total":
                    counted[sample.labels["outcome"]] += int(sample.value)
                if sample.name == "runtime_timeouts_total":
                    counted["timeouts"] += int(sample.value)
        return +counted
