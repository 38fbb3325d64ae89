"""A nats-server at whose MQTT listener devices log in by certificates."""

import asyncio
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from tests.support.certificates import self_signed
from tests.support.servers import NatsServer


class TlsServer(NatsServer):
    """A server whose MQTT listener asks clients for a certificate."""

    certificates: Path

    def configuration(self) -> str:
        tls = (
            f'tls {{ cert_file: "{self.certificates}/localhost.pem",'
            f' key_file: "{self.certificates}/localhost.pem",'
            f' ca_file: "{self.certificates}/clients.pem", verify: true }}'
        )
        return super().configuration().replace("mqtt {", f"mqtt {{ {tls}, ", 1)


def start_tls_server(folder: Path, directory: Path) -> TlsServer:
    """Start a server with certificates in `folder`: its own, and those of dev1 and dev2."""
    (folder / "test").mkdir()
    self_signed("localhost", folder)
    clients = [self_signed(f"test/{device}", folder) for device in ("dev1", "dev2")]
    (folder / "clients.pem").write_bytes(b"".join(each.read_bytes() for each in clients))
    TlsServer.certificates = folder
    return TlsServer(directory)


async def add_certificate(pool: Any, pem: Path, device: str) -> None:
    content = await asyncio.to_thread(pem.read_bytes)
    fingerprint = x509.load_pem_x509_certificate(content).fingerprint(SHA256()).hex()
    await pool.execute(
        "INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, not_after)"
        " VALUES ('test', $1, $2, now() + interval '1 hour')",
        device,
        fingerprint,
    )
