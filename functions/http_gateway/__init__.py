"""The HTTP gateway: device ingest, EMQX's door, and every endpoint that asks to be exposed."""

from functions.http_gateway.service import serve
from functions.http_gateway.settings import Settings

__all__ = ["Settings", "serve"]
