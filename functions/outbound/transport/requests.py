"""Encodes HTTP requests to URLs that tenants chose."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from functions.outbound.transport.connector import Origin

_HTTPS_PORT, _HTTP_PORT = 443, 80


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, in the parts that a request needs.

    Attributes:
        authority: the value of the Host header.
        path: with the query.
    """

    origin: Origin
    authority: str
    path: bytes


def target_of(url: str, tls: ssl.SSLContext) -> Target:
    """The parts of a URL that `check_url` accepts; host names in other scripts are IDNA encoded."""
    parsed = httpx.URL(url)
    is_tls = parsed.scheme == "https"
    port = parsed.port or (_HTTPS_PORT if is_tls else _HTTP_PORT)
    host = parsed.raw_host.decode("ascii")
    return Target(
        Origin(host, port, tls if is_tls else None), parsed.netloc.decode("ascii"), parsed.raw_path
    )


def encode_request(method: str, target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a request.

    Args:
        method: such as `POST`.
        target: where to.
        headers: beside Host and Content-Length; names and values without line ends, which are the
            caller's own or checked when the route was saved.
        body: the body.
    """
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
        method.encode("ascii"),
        target.path,
        target.authority.encode("ascii"),
        lines.encode("ascii"),
        len(body),
        body,
    )


__all__ = ["Target", "encode_request", "target_of"]
