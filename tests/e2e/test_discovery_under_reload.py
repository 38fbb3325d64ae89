"""`nats micro` and `runtime ls` while a host and two workers reload their functions."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from tests.support.adr32 import MODELS
from tests.support.command import runtime
from tests.support.host import eventually
from tests.support.servers import NatsServer
from tests.support.serving import serving

DEADLINE_S = 120.0
INSTANCES = 3
SAVES = 6
MANIFEST = """
streams:
  RELOADED: {subjects: ["reloaded.>"]}
functions:
  take: {handler: "shop:take", consumer: {stream: RELOADED, durable: take}}
  ask: {handler: "shop:ask", endpoint: {subject: shop.ask}}
"""
MODULE = """
from pydantic import BaseModel
from runtime import Context, Event


class Order(BaseModel):
    number_VERSION: int


async def take(event: Event[Order], ctx: Context) -> None:
    pass


async def ask(event: Event[Order], ctx: Context) -> bytes:
    return b"VERSION"
"""


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A client of the client library."""
    connected = await nats.connect(nats_server.url)
    yield connected
    await connected.close()


def save(folder: Path, version: str, end: str = "") -> None:
    new = folder / "shop.tmp"
    new.write_text(MODULE.replace("VERSION", version) + end)
    new.replace(folder / "shop.py")


class Observer:
    """Asks for discovery, and checks that every instance answers in the form of the record."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._round = asyncio.Event()
        self.ids: set[str] = set()
        # Not a cancellation, which the client library may swallow together with an answer.
        self.is_over = False

    async def ask(self, verb: str, service: str) -> list[Any]:
        """The answers of all instances."""
        inbox = self._client.new_inbox()
        heard = await self._client.subscribe(inbox)
        await self._client.publish(f"$SRV.{verb}.{service}", b"", inbox)
        answers = [json.loads((await heard.next_msg(DEADLINE_S)).data) for _ in range(INSTANCES)]
        await heard.unsubscribe()
        for answer in answers:
            MODELS[verb].model_validate(answer)
            self.ids.add(answer["id"])
        return answers

    async def look(self) -> None:
        """Ask for everything, again and again, until `is_over`."""
        while not self.is_over:
            for verb in MODELS:
                for service in ("take", "ask"):
                    await self.ask(verb, service)
            self._round.set()

    async def wait_for_rounds(self) -> None:
        """Return when everything was asked for twice more."""
        for _ in range(2):
            self._round.clear()
            await asyncio.wait_for(self._round.wait(), DEADLINE_S)

    async def metadata(self, service: str) -> list[dict[str, str]]:
        """The metadata of all instances."""
        found = await self.ask("INFO", service)
        return [answer["endpoints"][0]["metadata"] for answer in found]

    async def all_run(self, version: str) -> bool:
        """Whether they run this version, and no reload failed."""
        found = [*await self.metadata("take"), *await self.metadata("ask")]
        shown = all(version in each["schema.request"] for each in found)
        return shown and not any("reload_error" in each for each in found)

    async def all_failed(self) -> bool:
        """Whether their last reload failed."""
        return all("reload_error" in each for each in await self.metadata("ask"))


@pytest.mark.nats_cli
async def test_every_instance_answers_while_files_change_and_shows_what_it_runs(
    tmp_path: Path, nats_server: NatsServer, client: Client, nats_cli: Callable[..., str]
) -> None:
    (tmp_path / "app.yaml").write_text(MANIFEST)
    save(tmp_path, "v0")
    url = nats_server.url
    observer = Observer(client)

    async def change() -> None:
        for number in range(1, SAVES + 1):
            save(tmp_path, f"v{number}", "broken(\n" if number % 2 else "")
            await observer.wait_for_rounds()

    async with (
        serving(tmp_path, "app.yaml", "--reload", NATS_URL=url) as one,
        serving(tmp_path, "app.yaml", "--reload", "--workers", "2", NATS_URL=url) as two,
    ):
        await one.wait_for_line("Ready")
        await two.wait_for_line("Ready", count=3)
        looking = asyncio.create_task(observer.look())
        listed, info, stats, _ = await asyncio.gather(
            asyncio.to_thread(nats_cli, url, "micro", "ls"),
            asyncio.to_thread(nats_cli, url, "micro", "info", "take"),
            asyncio.to_thread(nats_cli, url, "micro", "stats", "ask", "--json"),
            change(),
        )
        await eventually(lambda: observer.all_run(f"v{SAVES}"), "the last version")
        observer.is_over = True
        await looking
        save(tmp_path, "v99", "broken(\n")
        await eventually(observer.all_failed, "the failure")
        shown = await runtime(url, "ls", "--json", "--function", "ask")
        table = await runtime(url, "ls", "--function", "ask")
        reports = await runtime(url, "logs", "--level", "error", "--json")

    assert len(observer.ids) == 2 * INSTANCES
    assert all(one in listed for one in observer.ids)
    assert "code_version" in info
    assert len(json.loads(stats)) == INSTANCES
    [document] = shown.documents
    assert [each["worker"] for each in document["processes"]] == ["", "1", "2"]
    assert all("shop.py:16" in each["reload_error"] for each in document["processes"])
    assert document["instances"] == INSTANCES
    assert list(document["versions"].values()) == [INSTANCES]
    assert "reload failed" in table.out
    assert "ask: the last reload failed on " in table.out
    assert {line.get("worker", "") for line in reports.documents} == {"", "supervisor"}
