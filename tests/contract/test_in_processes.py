"""The settling table, for hosts in processes of their own."""

from pathlib import Path

from runtime.broker.connection import Broker
from tests.contract.kinds import Kind
from tests.contract.performance import perform, performances
from tests.contract.table import Row
from tests.support.servers import NatsServer


@performances(in_own_process=True)
async def test_the_contract_holds(
    row: Row, kind: Kind, broker: Broker, nats_server: NatsServer, server_directory: Path
) -> None:
    await perform(row, kind, broker, nats_server.url, server_directory)
