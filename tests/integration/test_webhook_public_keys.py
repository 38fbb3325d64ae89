"""The public keys of webhooks: who may read them, and that they verify what is sent."""

import base64
import json
import ssl

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from functions.domain.signing_keys import make_signing_key, public_key_of
from functions.outbound.endpoint import WebhookDestination
from functions.outbound.webhook_sender import WebhookSender, WebhookSettings
from runtime import manifest
from runtime.broker.connection import Broker
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from tests.support.documentation import ROOT
from tests.support.gateway import REGISTRATION_KEY, run_gateway
from tests.support.receiver import Receiver
from tests.support.servers import NatsServer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def add_routes(postgres_dsn: str, *keys: tuple[str, str | None]) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    for number, (tenant_id, key) in enumerate(keys):
        await connection.execute(
            "INSERT INTO tenants (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING", tenant_id
        )
        config = {"url": "https://example.org/secret-path", "secret": SECRET}
        if key:
            config |= {"signing_key": key, "public_key": public_key_of(key)}
        await connection.execute(
            "INSERT INTO message_routes"
            " (tenant_id, name, topic_filter, destination_type, destination_config)"
            " VALUES ($1, $2, 'tenant/#', 'webhook', $3::text::jsonb)",
            tenant_id,
            f"route-{number}",
            json.dumps(config),
        )
    await connection.close()


@pytest.mark.timeout(60)
async def test_a_receiver_finds_the_key_that_verifies_a_webhook_without_any_key_of_its_own(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str
) -> None:
    own, other = make_signing_key(), make_signing_key()
    await add_routes(postgres_dsn, ("test", own), ("test", own), ("test", None), ("else", other))
    shipped = manifest.read([ROOT / "manifests" / "routes.yaml"], {})
    name = "webhook_keys"
    declared = shipped.model_copy(
        update={"functions": {name: shipped.functions[name]}, "streams": {}}
    )
    addresses = Addresses(nats_server.url, postgres_dsn)
    options = HostOptions(registration_key=REGISTRATION_KEY)
    host = Host(declared, load_all(declared), addresses, Metrics("0.0.0"), options)
    await host.start()
    try:
        async with run_gateway(broker) as gateway:
            found = await gateway.client.get("/api/v1/webhook-keys/test")
            nobody = await gateway.client.get("/api/v1/webhook-keys/nobody")
            no_tenant = await gateway.client.get("/api/v1/webhook-keys/a%20b")
    finally:
        await host.drain(10.0)
    assert (found.status_code, nobody.json(), no_tenant.status_code) == (200, {"keys": []}, 422)
    # Nothing of the routes, nor of the other tenant's.
    [key] = found.json()["keys"]
    assert key.keys() == {"kty", "crv", "use", "alg", "kid", "x", "whpk"}
    assert key["whpk"] == public_key_of(own)

    await verify(own, base64.urlsafe_b64decode(key["x"] + "="))


async def verify(signing_key: str, public_key: bytes) -> None:
    """Send a webhook, and verify its `v1a` signature as a receiver does."""
    sender = WebhookSender(
        WebhookSettings(allowed_networks="127.0.0.0/8"), ssl.create_default_context()
    )
    async with Receiver() as receiver:
        config = {"url": receiver.url, "secret": SECRET, "signing_key": signing_key}
        endpoint = WebhookDestination.model_validate(config).endpoint
        await sender.post(endpoint, "message-1", b'{"a":1}')
    await sender.aclose()
    [request] = receiver.requests
    sent = request.headers
    signatures = dict(part.split(",", 1) for part in sent["webhook-signature"].split(" "))
    assert signatures.keys() == {"v1", "v1a"}
    content = f"{sent['webhook-id']}.{sent['webhook-timestamp']}.".encode() + request.body
    verifier = Ed25519PublicKey.from_public_bytes(public_key)
    verifier.verify(base64.b64decode(signatures["v1a"]), content)
