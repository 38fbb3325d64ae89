"""Sends one message by MQTT, HTTP and NATS, and shows the three rows and signed deliveries."""

import asyncio
import base64
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import nats
import nats.errors
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from demo.api import DEVICE, SITE, TENANT, TOKEN, Api
from demo.host import DemoError, RunningHost
from demo.receiver import Receiver

PROTOCOLS = ("MQTT", "HTTP", "NATS")
TOPIC = f"tenant/{TENANT}/device/{DEVICE}/telemetry"
WAIT_S = 40.0
FIRST_TEMP = 21.0
NOT_ALLOWED = "DESTINATION_NOT_ALLOWED"
# Time for the database's notification of the changes to reach ingest.
SETTLE_S = 0.5
# `make run` lets webhooks reach this port of this machine alone.
RECEIVER_PORT = int(os.environ.get("DEMO_RECEIVER_PORT") or "8099")


def main() -> int:
    """Run the demonstration and return the exit code."""
    console = Console(highlight=False)
    try:
        _demonstrate(console, RunningHost.find())
    except DemoError as missing:
        console.print(f"[red]The demonstration failed.[/red] {missing}", soft_wrap=True)
        return 1
    return 0


def _receiver(secret: str) -> Receiver:
    try:
        return Receiver(secret, RECEIVER_PORT)
    except OSError:
        raise DemoError(
            f"Port {RECEIVER_PORT} is taken. Choose another one, and start `make run` and"
            " `make demo` with it: DEMO_RECEIVER_PORT=8100."
        ) from None


def _demonstrate(console: Console, host: RunningHost) -> None:
    api = Api(host)
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    run = int(time.time() * 1000)
    since = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    with _receiver(secret) as receiver:
        route_id = api.prepare(receiver.url, secret)
        console.print(f"Tenant {TENANT}, device {DEVICE}, and a webhook to {receiver.url}: ready.")
        try:
            time.sleep(SETTLE_S)
            _send(console, api, host, run)
            rows = _wait(lambda: api.rows(run, since), len(PROTOCOLS))
            if len(rows) < len(PROTOCOLS):
                raise DemoError(_missing("rows", len(rows), api.refusals(since)))
            # A host that may not connect to this machine makes no second attempt.
            refused = partial(_is_refused, api, route_id, since)
            events = receiver.collect(run, len(PROTOCOLS), WAIT_S, refused)
            if len(events) < len(PROTOCOLS):
                told = api.attempt_errors(route_id, since)
                raise DemoError(_missing("verified deliveries", len(events), told))
        finally:
            api.disable_route(route_id)
    _show(console, rows, events)


def _is_refused(api: Api, route_id: str, since: str) -> bool:
    return NOT_ALLOWED in api.attempt_errors(route_id, since)


def _send(console: Console, api: Api, host: RunningHost, run: int) -> None:
    senders: dict[str, Callable[[dict[str, Any]], None]] = {
        "MQTT": lambda payload: _send_by_mqtt(host, payload),
        "HTTP": api.post_telemetry,
        "NATS": lambda payload: asyncio.run(_send_by_nats(host, payload)),
    }
    for number, protocol in enumerate(PROTOCOLS):
        metrics = {"temp": FIRST_TEMP + number, "run": run}
        senders[protocol]({"site_id": SITE, "provision_token": TOKEN, "metrics": metrics})
        console.print(f"Sent by {protocol}: {json.dumps(metrics)}")


def _send_by_mqtt(host: RunningHost, payload: dict[str, Any]) -> None:
    name = f"{TENANT}/{DEVICE}"
    client = Client(CallbackAPIVersion.VERSION2, client_id=f"{name}/{secrets.randbelow(10)}")
    client.username_pw_set(name, TOKEN)
    try:
        client.connect("127.0.0.1", host.mqtt_port)
    except OSError:
        raise DemoError(f"There is no MQTT server on port {host.mqtt_port}.") from None
    client.loop_start()
    try:
        sent = client.publish(TOPIC, json.dumps(payload), qos=1)
        is_confirmed = False
        with suppress(RuntimeError):  # the server closed the connection
            sent.wait_for_publish(timeout=5.0)
            is_confirmed = sent.is_published()
        if not is_confirmed:
            raise DemoError(
                "The server did not confirm the MQTT message: does the host serve device_auth?"
            )
    finally:
        client.disconnect()
        client.loop_stop()


async def _send_by_nats(host: RunningHost, payload: dict[str, Any]) -> None:
    envelope = {
        "topic": TOPIC,
        "tenant_id": TENANT,
        "device_id": DEVICE,
        "msg_type": "telemetry",
        "username": "",
        "payload": payload,
        "ts": datetime.now(UTC).isoformat(),
    }
    try:
        client = await nats.connect(host.nats_url, allow_reconnect=False, connect_timeout=5)
        try:
            await client.jetstream().publish(f"telemetry.{TENANT}", json.dumps(envelope).encode())
        finally:
            await client.close()
    except (nats.errors.Error, OSError, socket.gaierror):
        raise DemoError(
            "NATS did not store the message: is NATS_URL that of the running host?"
        ) from None


def _wait(look: Callable[[], list[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    until = time.monotonic() + WAIT_S
    while len(found := look()) < count and time.monotonic() < until:
        time.sleep(0.1)
    return found


def _missing(what: str, found: int, codes: list[str]) -> str:
    told = f"Only {found} of {len(PROTOCOLS)} {what} came"
    if NOT_ALLOWED in codes:
        return (
            f"{told}: the host does not allow webhooks to this machine. Start the host with "
            f"WEBHOOK_ALLOWED_NETWORKS=127.0.0.1:{RECEIVER_PORT}, as `make run` does."
        )
    return f"{told}; recorded reason codes: {', '.join(codes) or 'none'}."


def _show(console: Console, rows: list[dict[str, Any]], events: dict[str, Any]) -> None:
    table = Table("sent by", "stored at", "seq", "site", "metrics", box=SIMPLE_HEAD)
    for row in rows:
        protocol, metrics = _told(row["metrics"])
        table.add_row(protocol, row["time"], str(row["seq"]), row["site_id"], metrics)
    console.print("\nRows in PostgreSQL", table)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("sent by", min_width=8)
    table.add_column("signature", min_width=9)
    table.add_column("webhook-id", overflow="fold")
    for webhook_id, event in sorted(events.items()):
        protocol, _ = _told(event["data"]["payload"]["metrics"])
        table.add_row(protocol, "[green]verified[/green]", webhook_id)
    console.print("Webhook deliveries", table)
    console.print(f"[green]{len(rows)} rows, {len(events)} verified deliveries.[/green]")


def _told(metrics: dict[str, float]) -> tuple[str, str]:
    """The protocol by which these metrics were sent, and the metrics without the run's number."""
    protocol = PROTOCOLS[round(metrics["temp"] - FIRST_TEMP)]
    return protocol, json.dumps({name: value for name, value in metrics.items() if name != "run"})


if __name__ == "__main__":
    sys.exit(main())
