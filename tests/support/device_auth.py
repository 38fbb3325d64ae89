"""A host with the function that lets devices in at nats-server's MQTT listener."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from runtime.host import Host
from tests.support.host import running_host
from tests.support.servers import NatsServer

SUBJECT = "$SYS.REQ.USER.AUTH"


def manifest(server: NatsServer, **settings: Any) -> dict[str, Any]:
    return {
        "device_auth": {
            "handler": "functions.device_auth:authorize",
            "endpoint": {"service": "device_auth", "subject": SUBJECT},
            "uses": ["postgres", "nats_system"],
            # Tests send in a second what a device sends in a minute.
            "settings": {
                "issuer": server.issuer.seed,
                "max_messages_per_s": 100_000,
                **settings,
            },
        }
    }


@asynccontextmanager
async def serving(server: NatsServer, dsn: str, **settings: Any) -> AsyncIterator[Host]:
    async with running_host(
        server.url,
        manifest(server, **settings),
        database_url=dsn,
        nats_system_url=server.system_url,
    ) as host:
        yield host
