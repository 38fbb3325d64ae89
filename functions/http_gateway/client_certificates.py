"""The client certificate that a reverse proxy has verified and passes on in a header."""

import base64
import binascii
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from functions.domain.device_certificates import DeviceCertificate, read_certificate
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request

_MAX_LENGTH = 8192
_MAX_KEPT = 1024


class ClientCertificates:
    """Reads the header only from a trusted proxy; anybody else could write it.

    The value is a byte sequence with the certificate in DER (RFC 9440), or PEM, percent-encoded, as
    nginx writes `$ssl_client_escaped_cert`.

    Args:
        header: the header's name; empty to read none.
        addresses: knows the trusted proxies.
    """

    def __init__(self, header: str, addresses: ClientAddresses) -> None:
        self._header = header.lower()
        self._addresses = addresses

    def read(self, request: Request) -> DeviceCertificate | None:
        """The certificate of a request's client; None without one, or without a proxy.

        Raises:
            ProblemError: 400 for a header that is no certificate of a device, or comes twice: then
                the proxy has added its own to what the client wrote.
        """
        client = request.scope.get("client")
        if not self._header or not client or not self._addresses.is_proxy(client[0]):
            return None
        name = self._header.encode("latin-1")
        values = [value for key, value in request.scope["headers"] if key == name]
        if not values or values == [b""]:
            return None
        found = _read(values[0]) if len(values) == 1 and len(values[0]) <= _MAX_LENGTH else None
        if found is None:
            raise ProblemError(
                400, "INVALID_CERTIFICATE", "The client certificate is not one of a device."
            )
        return found


@lru_cache(_MAX_KEPT)
def _read(value: bytes) -> DeviceCertificate | None:
    if not value.startswith(b":"):
        return read_certificate(unquote_to_bytes(value))
    if len(value) < len(b"::") or not value.endswith(b":"):
        return None
    try:
        return read_certificate(base64.b64decode(value[1:-1], validate=True))
    except binascii.Error:
        return None


__all__ = ["ClientCertificates"]
