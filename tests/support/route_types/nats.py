"""The counterpart of `nats_republish`: an account of a second nats-server."""

import asyncio
import base64
from pathlib import Path
from typing import Any

from runtime.broker.connection import Broker
from tests.support.route_types.counterpart import Arrived, Counterpart, Scene
from tests.support.servers import NatsServer

USER, PASSWORD = "tenant_acme", "p4ss-of-acme"


class TenantNatsServer(NatsServer):
    """A server of somebody else, with two accounts."""

    def configuration(self) -> str:
        return f"""
port: -1
ports_file_dir: "{self.directory / "ports"}"
log_file: "{self.directory / "nats-server.log"}"
http: "127.0.0.1:-1"
server_name: "theirs"
max_payload: 4096
jetstream {{ store_dir: "{self.directory / "data"}" }}
mqtt {{ host: "127.0.0.1", port: -1 }}
accounts {{
  ACME: {{ jetstream: enabled, users: [
    {{ user: {USER}, password: {PASSWORD}, permissions: {{ publish: {{ deny: ["closed.>"] }} }} }}
  ] }}
  OTHER: {{ jetstream: enabled, users: [{{ user: other, password: other }}] }}
}}
"""


class NatsCounterpart(Counterpart):
    """A stream of the account."""

    type_name = "nats_republish"
    module = "functions.route_delivery.nats_republish"
    secrets = (PASSWORD,)
    wrong = (
        {"host": "a b"},
        {"subject": "a.*"},
        {"subject": "a.>"},
        {"subject": "a b"},
        {"subject": "{payload.a"},
        {"port": 0},
        {"servers": ["nats://example.org"]},
        {"password": "p"},
        {"nkey_seed": "SUAA"},
        {"credentials": "no file"},
    )

    def __init__(self, server: NatsServer) -> None:
        self._server = server

    async def __aenter__(self) -> "NatsCounterpart":
        self._broker = await Broker.connect(
            f"nats://{USER}:{PASSWORD}@127.0.0.1:{self._server.port}", name="subscriber"
        )
        await self._broker.api(
            "STREAM.CREATE.OUT", {"name": "OUT", "subjects": ["out.>"], "storage": "memory"}
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._broker.api("STREAM.DELETE.OUT")
        await self._broker.close()

    def config(self) -> dict[str, Any]:
        return {
            "host": "localhost",
            "port": self._server.port,
            "user": USER,
            "password": PASSWORD,
            "subject": "out.{tenant_id}.{device_id}",
        }

    def at(self, port: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"port": port}, {}

    async def arrived(self, count: int) -> list[Arrived]:
        async with asyncio.timeout(60):
            while True:
                told = await self._broker.api("STREAM.INFO.OUT")
                if told["state"]["messages"] >= count:
                    break
        found = []
        for sequence in range(1, told["state"]["last_seq"] + 1):
            told = await self._broker.api("STREAM.MSG.GET.OUT", {"seq": sequence})
            message = told["message"]
            headers = base64.b64decode(message["hdrs"]).decode()
            identity = headers.partition("Nats-Msg-Id: ")[2].splitlines()[0]
            found.append(Arrived(identity, base64.b64decode(message["data"]).decode()))
        return found

    async def refused(self) -> Scene:
        return Scene("PAYLOAD_TOO_LARGE", payload={"metrics": {"note": "x" * 5000}})

    async def failed(self) -> Scene:
        return Scene("NOT_PERMITTED", {"subject": "closed.{device_id}"})


def theirs(directory: Path) -> TenantNatsServer:
    """Start the server."""
    return TenantNatsServer(directory)
