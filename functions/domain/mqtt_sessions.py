"""Which devices have a session at nats-server's own MQTT listener, asked of the servers."""

import asyncio
from collections.abc import Iterable

import orjson

from runtime import SystemPort

_WAIT_S = 0.3
_MOST_AT_ONCE = 50

Device = tuple[str, str]


async def find_connected(system: SystemPort, devices: Iterable[Device]) -> set[Device]:
    """Those of the devices that have an open session with their own credentials.

    A server looks through its connections for each device, so ask for few.

    Args:
        system: the system account of the servers.
        devices: tenant and device ids; of more than 50 different ones the others count as away.

    Raises:
        Unavailable: NATS is not connected.
    """
    asked = sorted(set(devices))[:_MOST_AT_ONCE]
    answers = await asyncio.gather(*(_has_session(system, device) for device in asked))
    return {device for device, is_open in zip(asked, answers, strict=True) if is_open}


async def _has_session(system: SystemPort, device: Device) -> bool:
    # The user name of a device is tenant/device; `auth` makes the server compare it.
    options = {"auth": True, "user": "/".join(device), "limit": 1}
    subject = "$SYS.REQ.SERVER.PING.CONNZ"
    replies = await system.request_many(subject, orjson.dumps(options), wait_s=_WAIT_S)
    for reply in replies:
        # A server that refuses the question answers without data.
        connections = (orjson.loads(reply.data).get("data") or {}).get("connections") or []
        if any(each.get("type") == "mqtt" for each in connections):
            return True
    return False


__all__ = ["find_connected"]
