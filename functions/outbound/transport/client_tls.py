"""TLS contexts with a client certificate or authorities of a tenant's own."""

import asyncio
import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from functions.domain.target_tls import TargetTls
from functions.outbound.transport.faults import (
    CertificateEnded,
    CertificateUnusable,
    take_failure,
)

_MAX_KEPT = 1000


class TlsContexts:
    """Contexts by the fingerprint of their certificates.

    Each is made once and in a thread, since loading takes up to 20 ms. Two configurations with the
    same certificates share a context, and with it connections.

    Args:
        usual: for endpoints without certificates of their own.
    """

    def __init__(self, usual: ssl.SSLContext) -> None:
        self.usual = usual
        self._made: dict[str, ssl.SSLContext] = {}
        self._making: dict[str, asyncio.Task[ssl.SSLContext]] = {}

    async def of(self, tls: TargetTls) -> ssl.SSLContext:
        """The context for these certificates.

        Raises:
            CertificateEnded: the client certificate is not valid any more; nothing was sent.
            CertificateUnusable: OpenSSL does not take the certificates.
        """
        if tls.not_after is not None and tls.not_after < datetime.now(UTC):
            raise CertificateEnded
        if context := self._made.get(tls.fingerprint):
            return context
        making = self._making.get(tls.fingerprint)
        if making is None:
            making = self._making[tls.fingerprint] = asyncio.create_task(self._make(tls))
            making.add_done_callback(take_failure)
        # Shielded: the time limit of one caller must not end what others wait for.
        return await asyncio.shield(making)

    async def _make(self, tls: TargetTls) -> ssl.SSLContext:
        try:
            context = await asyncio.to_thread(_open_context, tls)
        except (ssl.SSLError, ValueError, OSError):
            raise CertificateUnusable from None
        finally:
            del self._making[tls.fingerprint]
        if len(self._made) >= _MAX_KEPT:
            self._made.clear()
        self._made[tls.fingerprint] = context
        return context


def _open_context(tls: TargetTls) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=tls.authorities)
    if tls.client_certificate is not None:
        with _as_file(tls.client_certificate.get_secret_value().encode()) as path:
            # A password, since OpenSSL would ask for one on the terminal if the key needed it.
            context.load_cert_chain(path, password="")
    return context


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path from which OpenSSL, which reads keys from files alone, can read the content."""
    if hasattr(os, "memfd_create"):
        # In memory: a key must not be on a disk in clear, not even for a moment.
        file = os.memfd_create("client-certificate")
        try:
            os.write(file, content)
            yield f"/proc/self/fd/{file}"
        finally:
            os.close(file)
        return
    with tempfile.NamedTemporaryFile() as named:
        named.write(content)
        named.flush()
        yield named.name


__all__ = ["TlsContexts"]
