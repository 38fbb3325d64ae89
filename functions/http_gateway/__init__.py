"""The HTTP gateway: device ingest, the EMQX bridge, and every endpoint with `http` metadata."""

from functions.http_gateway.service import serve
from functions.http_gateway.settings import GatewaySettings

# The name under which the host looks for a function's settings.
Settings = GatewaySettings

__all__ = ["GatewaySettings", "Settings", "serve"]
