"""Serves the project in docs/reloading.md, and checks the page's statements about state."""

from pathlib import Path

from runtime.broker.connection import Broker
from tests.support.documentation import ROOT, serving, write_files
from tests.support.host import eventually
from tests.support.servers import NatsServer

PAGE = ROOT / "docs" / "reloading.md"


async def test_state_is_handed_over_and_the_old_version_is_stopped(
    tmp_path: Path, nats_server: NatsServer, broker: Broker
) -> None:
    write_files(PAGE, tmp_path)
    module = tmp_path / "counting.py"
    environment = {"NATS_URL": nats_server.url, "RUNTIME_LOG_FORMAT": "json"}
    with serving(tmp_path, "app.yaml", "--reload", environment=environment) as served:
        for number in (1, 2):
            answer = await broker.request("count", b"", timeout_s=10)
            assert answer.data == f'"{number} seen"'.encode()

        module.write_text(module.read_text().replace(' seen"', ' counted"'))

        async def ask() -> bytes | None:
            answer = (await broker.request("count", b"", timeout_s=10)).data
            return answer if b"counted" in answer else None

        last = await eventually(ask, "an answer of the new version")
        assert last is not None
        number = int(last.decode().strip('"').split()[0])
        assert number > 2
        assert served.wait_for("Swapped", function="count")
        assert 2 <= served.wait_for("Stopped", function="count")["seen"] <= number
