"""The homelab's streams, created by `nats stream add` and by the manifest, in either order."""

import asyncio
import re
import shlex
from collections.abc import Callable

import pytest

from runtime.broker.connection import Broker
from runtime.broker.drift import Change
from runtime.broker.streams import ensure, plan
from runtime.cli.manifests import SHIPPED
from runtime.manifest import Manifest, read
from tests.support.servers import NatsServer

FILE = SHIPPED / "homelab.yaml"
COMMANDS = re.findall(r"^#   nats (.+)$", FILE.read_text("utf-8"), re.MULTILINE)
"""The commands with which such a laboratory was set up, as the manifest repeats them."""

pytestmark = pytest.mark.nats_cli


@pytest.fixture(autouse=True)
async def clean_server(broker: Broker) -> None:
    for name in (await broker.api("STREAM.NAMES")).get("streams") or []:
        await broker.api(f"STREAM.DELETE.{name}")


@pytest.fixture
def manifest() -> Manifest:
    return read([FILE], {})


@pytest.fixture
def set_up(nats_server: NatsServer, nats_cli: Callable[..., str]) -> Callable[[], None]:
    """Runs every command; the test fails when the server refuses a command."""

    def run() -> None:
        for line in COMMANDS:
            nats_cli(nats_server.url, *shlex.split(line))

    return run


def of_the_laboratory(changes: list[Change], manifest: Manifest) -> list[str]:
    return [
        str(each) for each in changes if each.object.split()[1].split("/")[0] in manifest.streams
    ]


def test_every_stream_and_consumer_has_its_command(manifest: Manifest) -> None:
    made = {tuple(line.split()[:4]) for line in COMMANDS}

    assert {words[2] for words in made if words[0] == "stream"} == manifest.streams.keys()
    assert {words[2:] for words in made if words[0] == "consumer"} == {
        (stream, durable) for stream, spec in manifest.streams.items() for durable in spec.consumers
    }


async def test_what_the_commands_made_is_what_the_manifest_says(
    broker: Broker, manifest: Manifest, set_up: Callable[[], None]
) -> None:
    await asyncio.to_thread(set_up)

    changes = await ensure(broker, manifest)

    assert of_the_laboratory(changes, manifest) == []
    # As an init script does on every start.
    await asyncio.to_thread(set_up)
    assert await plan(broker, manifest) == []


async def test_the_commands_are_accepted_where_the_manifest_made_the_streams(
    broker: Broker, manifest: Manifest, set_up: Callable[[], None]
) -> None:
    await ensure(broker, manifest)

    await asyncio.to_thread(set_up)

    assert await plan(broker, manifest) == []
