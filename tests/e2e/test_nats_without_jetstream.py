"""A nats-server without JetStream, which answers and stores nothing."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import runtime
from tests.support.servers import nats_program, wait_until


@pytest.fixture
def plain_server(tmp_path: Path) -> Iterator[str]:
    """The address of a nats-server that was started without `-js`."""
    command = [nats_program(), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            written = wait_until(
                lambda: [text for file in tmp_path.glob("*.ports") if (text := file.read_text())],
                "the file with the ports",
            )
            yield json.loads(written[0])["nats"][0]
        finally:
            process.terminate()


async def test_a_command_says_that_jetstream_is_missing_and_how_to_enable_it(
    plain_server: str,
) -> None:
    done = await runtime(plain_server, "dlq", "ls")

    assert (done.code, done.out) == (1, "")
    first, remedy = done.err.splitlines()
    assert first.startswith("JetStream is unavailable")
    assert remedy == "The server answers without JetStream: enable it, `nats-server -js`"
