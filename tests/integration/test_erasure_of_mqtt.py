"""An erasure and what nats-server keeps of MQTT sessions, with real clients."""

from collections.abc import AsyncIterator

import pytest

from functions.erasure.erasing import ErasingSettings
from runtime.broker.connection import Broker
from runtime.resource.postgres import open_pool
from tests.integration.test_erasure import GONE, KEPT, Eraser, count_in_streams
from tests.support.device_auth import serving
from tests.support.host import eventually
from tests.support.ingest import TOKEN, register
from tests.support.raw_mqtt import ACCEPTED, RawMqtt
from tests.support.servers import NatsServer

KEEPING = 0
STREAMS = ["$MQTT_sess", "$MQTT_msgs", "$MQTT_rmsgs", "$MQTT_qos2in", "$MQTT_out"]


@pytest.fixture
async def eraser(postgres_dsn: str, broker: Broker) -> AsyncIterator[Eraser]:
    pool = await open_pool(postgres_dsn, max_size=4)
    for tenant in (GONE, KEPT):
        await register(pool, tenant=tenant, device="d.1")
    yield Eraser(pool, broker)
    await pool.close()


async def leave_everything(server: NatsServer, tenant: str) -> None:
    """As a device, leave what nats-server keeps of a session, in every way that there is."""
    user = f"{tenant}/d.1"
    client_id, own = user.replace(".", "//"), f"tenant/{user.replace('/', '/device/')}"
    async with await RawMqtt.open(server.mqtt_port) as device:
        assert await device.connect(client_id, user, TOKEN, flags=KEEPING) == ACCEPTED
        assert await device.subscribe(f"{own}/#", qos=2) == 2
        # Retained, where the subject is mapped and where not.
        for kind in ("telemetry", "metrics"):
            await device.publish(f"{own}/{kind}", b"{}", retain=True)
        # Of QoS 2, and never released.
        await device.publish(f"{own}/heartbeat", b"{}", qos=2, packet_id=7)
        await device.ping()
    async with await RawMqtt.open(server.mqtt_port) as another:
        assert await another.connect(f"{client_id}/1", user, TOKEN) == ACCEPTED
        # Waits for the first session: with QoS 1, and as a release.
        await another.deliver(f"{own}/metrics", b"{}")


async def consumers(broker: Broker) -> dict[str, list[str]]:
    """The consumers' filters of each stream."""
    return {
        stream: [
            each["config"]["filter_subject"]
            for each in (await broker.api(f"CONSUMER.LIST.{stream}"))["consumers"] or []
        ]
        for stream in ("$MQTT_msgs", "$MQTT_out")
    }


async def state(broker: Broker) -> dict[str, int]:
    return {
        stream: (await broker.api(f"STREAM.INFO.{stream}"))["state"]["messages"]
        for stream in STREAMS
    }


async def test_nothing_of_a_tenant_s_sessions_remains_and_all_of_another_s(
    nats_server: NatsServer, postgres_dsn: str, broker: Broker, eraser: Eraser
) -> None:
    async with serving(nats_server, postgres_dsn):
        await leave_everything(nats_server, KEPT)

        async def has_ended() -> bool:
            return (await state(broker))["$MQTT_sess"] == 1

        # The server removes the session of the other client after its connection.
        await eventually(has_ended, "the end of the clean session")
        kept = await state(broker), await consumers(broker)
        await leave_everything(nats_server, GONE)
    assert set(await count_in_streams(broker, STREAMS, GONE)) == set(STREAMS) - {"$MQTT_out"}

    await eraser.request()
    await eraser.finish(ErasingSettings(settle_s=0.2))

    assert await count_in_streams(broker, STREAMS, GONE) == {}
    assert (await state(broker), await consumers(broker)) == kept
    assert all(kept[0][stream] for stream in set(STREAMS) - {"$MQTT_out"})
    assert all(kept[1].values())
