"""A backup made as docs/operations.md says can be restored."""

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.broker import stored
from runtime.broker.connection import Broker
from runtime.embedded.credentials import host_url
from tests.support.documentation import ROOT, free_port, read_blocks, serving, write_files
from tests.support.servers import remove


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="runtime-test-backup-"))
    made.chmod(0o711)
    yield made
    remove(made)


async def test_a_copy_of_a_stopped_hosts_data_can_be_served(folder: Path) -> None:
    [command] = [
        block.text
        for block in read_blocks(ROOT / "docs" / "operations.md")
        if "cp -a" in block.text
    ]
    write_files(ROOT / "README.md", folder)
    ports = ("RUNTIME_NATS_PORT", "RUNTIME_MONITOR_PORT", "RUNTIME_MQTT_PORT")
    environment = {name: str(free_port()) for name in ports}
    port = int(environment["RUNTIME_NATS_PORT"])

    greeted = asyncio.Event()
    with serving(folder, "hello.yaml", environment=environment):
        url = host_url(port, (folder / ".runtime" / "nats.password").read_text().strip())
        broker = await Broker.connect(url, name="test")
        await broker.subscribe("greetings.sent", lambda _: greeted.set())
        await broker.publish("greetings.wanted", b'{"name": "Ada"}')
        await asyncio.wait_for(greeted.wait(), 30)
        await broker.close()
    copying = command.removeprefix("$ ").replace("/var/backups/runtime", "copy").split()
    await asyncio.to_thread(subprocess.run, copying, cwd=folder, check=True)
    environment["RUNTIME_DATA_DIR"] = "copy"
    with serving(folder, "hello.yaml", environment=environment):
        broker = await Broker.connect(url, name="test")
        kept = [message.data async for message in stored.scan(broker, "GREETINGS", ">")]
        await broker.close()

    assert kept == [b'{"name": "Ada"}', b"Hello, Ada!"]
