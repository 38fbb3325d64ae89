"""The fields of a destination that is connected to with TLS, and the contexts that they ask for."""

import asyncio
import ssl
from functools import lru_cache
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from functions.domain.destination_annotations import Format
from functions.domain.target_tls import MAX_PEM_CHARACTERS, TargetTls, read_target_tls
from functions.outbound.transport.client_tls import TlsContexts

_read = lru_cache(maxsize=1000)(read_target_tls)


class TlsFields(BaseModel):
    """Whether and how a destination is connected to with TLS.

    Attributes:
        tls: connect with TLS, and check the certificate against `host`.
        authorities: of that certificate, in PEM, if they are not public ones.
        client_certificate: in PEM, with the chain and the private key, if the server asks for one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tls: bool = False
    authorities: (
        Annotated[str, StringConstraints(max_length=MAX_PEM_CHARACTERS), Format("authorities")]
        | None
    ) = None
    client_certificate: (
        Annotated[SecretStr, Field(max_length=MAX_PEM_CHARACTERS), Format("client-certificate")]
        | None
    ) = None

    @model_validator(mode="after")
    def _has_usable_certificates(self) -> Self:
        if self.certificates is not None and not self.tls:
            raise ValueError("certificates need tls")
        return self

    @property
    def certificates(self) -> TargetTls | None:
        """What is said about certificates; None for nothing.

        Raises:
            ValueError: it cannot be used.
        """
        return _read(self.client_certificate, self.authorities)

    def origin_at(self, address: str) -> str:
        """What failures to connect to an address count for.

        TLS and certificates are the tenant's choice: a handshake that they make fail says nothing
        about the other endpoints there.
        """
        if not self.tls:
            return address
        own = self.certificates
        return f"{address} tls {own.fingerprint if own else 'usual'}"


class TlsChooser:
    """The context for each destination; loading the public authorities takes 20 ms."""

    def __init__(self, usual: ssl.SSLContext) -> None:
        self._contexts = TlsContexts(usual)

    async def of(self, certificates: TargetTls | None) -> ssl.SSLContext:
        """The context for these certificates, or the usual one.

        Raises:
            Fault: OpenSSL does not take them, or they have ended.
        """
        if certificates is None:
            return self._contexts.usual
        return await self._contexts.of(certificates)


async def usual_context() -> ssl.SSLContext:
    """Trusts the public authorities."""
    return await asyncio.to_thread(ssl.create_default_context)


__all__ = ["TlsChooser", "TlsFields", "usual_context"]
