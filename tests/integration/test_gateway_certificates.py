"""A device proves itself by the client certificate that a trusted proxy has verified."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from runtime.broker.connection import Broker
from runtime.resource.postgres import open_pool
from tests.support.gateway import (
    PROVE_DEVICES,
    Gateway,
    count_stored,
    make_streams,
    read_stored,
    run_gateway,
)
from tests.support.host import eventually, running_host
from tests.support.ingest import TOKEN, register
from tests.support.servers import NatsServer

PATH = "/ingest/v1/tenant/test/device/dev1/telemetry"
HEADER = "Client-Cert"
REGISTRY = {"prove_devices": PROVE_DEVICES}


def make_certificate(name: str = "test/dev1") -> x509.Certificate:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1))
    return builder.not_valid_after(now + timedelta(hours=1)).sign(key, hashes.SHA256())


def as_bytes(certificate: x509.Certificate) -> str:
    """As RFC 9440 writes a certificate."""
    der = certificate.public_bytes(serialization.Encoding.DER)
    return f":{base64.b64encode(der).decode()}:"


def as_nginx(certificate: x509.Certificate) -> str:
    return quote(certificate.public_bytes(serialization.Encoding.PEM))


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Any]:
    opened = await open_pool(postgres_dsn, max_size=2)
    await register(opened)
    await register(opened, device="dev2")
    yield opened
    await opened.close()


async def store(pool: Any, certificate: x509.Certificate, device: str = "dev1") -> None:
    await pool.execute(
        "INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, not_after)"
        " VALUES ('test', $1, $2, now() + interval '1 hour')",
        device,
        certificate.fingerprint(hashes.SHA256()).hex(),
    )


@asynccontextmanager
async def serving(
    nats_server: NatsServer, broker: Broker, dsn: str, **settings: Any
) -> AsyncIterator[Gateway]:
    chosen = {"trusted_proxies": "127.0.0.0/8", "client_certificate_header": HEADER, **settings}
    async with (
        make_streams(broker),
        running_host(nats_server.url, REGISTRY, database_url=dsn),
        run_gateway(broker, require_token=True, token_cache_s=0.05, **chosen) as gateway,
    ):
        yield gateway


async def send(
    gateway: Gateway, *values: str, path: str = PATH, token: str | None = None, json: Any = None
) -> httpx.Response:
    headers = [(HEADER, value) for value in values]
    headers += [] if token is None else [("X-Provision-Token", token)]
    return await gateway.client.post(path, json={} if json is None else json, headers=headers)


async def test_a_certificate_of_the_device_takes_the_place_of_its_token(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    certificate = make_certificate()
    await store(pool, certificate)
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        for value in (as_bytes(certificate), as_nginx(certificate)):
            assert (await send(gateway, value)).status_code == 202
        batch = await send(gateway, as_bytes(certificate), path=f"{PATH}/batch", json=[{}, {}])
        assert batch.json()["accepted"] == 2
        for kind, stream in (("shadow/reported", "SHADOW"), ("commands/ack", "COMMANDS")):
            report = await send(gateway, as_bytes(certificate), path=PATH[:-9] + kind)
            assert report.status_code == 202
            assert (await read_stored(broker, stream)).document["username"] == "test/dev1"
        # With a token beside it, as some clients send both, the token counts.
        assert (await send(gateway, as_bytes(certificate), token=TOKEN)).status_code == 202
        assert (await send(gateway, as_bytes(certificate), token="guess")).status_code == 403
        names = [
            (await read_stored(broker, "TELEMETRY", number)).document["username"]
            for number in range(1, 6)
        ]
        # Functions accept this name in place of a token.
        assert names == ["test/dev1"] * 4 + [""]

        await pool.execute("UPDATE device_certificates SET status = 'REVOKED'")

        async def is_refused() -> bool:
            return (await send(gateway, as_bytes(certificate))).status_code == 403

        await eventually(is_refused, "the refusal of the revoked certificate")


async def test_no_other_certificate_proves_the_device(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    known, stolen_name, other = (
        make_certificate(),
        make_certificate(),
        make_certificate("test/dev2"),
    )
    await store(pool, known)
    await store(pool, other, "dev2")
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        refused = [
            await send(gateway, as_bytes(stolen_name)),
            await send(gateway, as_bytes(other)),
            await send(gateway, as_bytes(known), path=PATH.replace("dev1", "dev2")),
            await send(gateway, as_bytes(known), path=PATH.replace("test", "other")),
        ]
        malformed = [
            await send(gateway, *values)
            for values in (
                ("nonsense",),
                (":",),
                ("::",),
                (":%%%:",),
                (as_bytes(known)[:-9] + ":",),
                (as_bytes(known), as_bytes(known)),
                ("", as_bytes(known)),
                (":" + "A" * 9000 + ":",),
                (as_bytes(make_certificate("no device")),),
            )
        ]
        assert await count_stored(broker) == {}
    assert {(each.status_code, each.json()["code"]) for each in refused} == {
        (403, "CERTIFICATE_INVALID")
    }
    codes = [(each.status_code, each.json()["code"]) for each in malformed]
    # The last has a name that is no device's.
    assert codes[-1] == (403, "CERTIFICATE_INVALID")
    assert set(codes[:-1]) == {(400, "INVALID_CERTIFICATE")}


@pytest.mark.parametrize(
    "settings", [{"trusted_proxies": "192.0.2.0/24"}, {"client_certificate_header": ""}]
)
async def test_a_header_that_no_trusted_proxy_sends_proves_nothing(
    nats_server: NatsServer,
    broker: Broker,
    postgres_dsn: str,
    pool: Any,
    settings: dict[str, str],
) -> None:
    certificate = make_certificate()
    await store(pool, certificate)
    async with serving(nats_server, broker, postgres_dsn, **settings) as gateway:
        answer = await send(gateway, as_bytes(certificate))
    assert (answer.status_code, answer.json()["code"]) == (401, "TOKEN_MISSING")
