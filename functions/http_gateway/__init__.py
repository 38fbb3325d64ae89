"""The HTTP gateway: device ingest, EMQX's door, and every endpoint that asks to be exposed."""

from functions.http_gateway.service import serve
from functions.http_gateway.settings import GatewaySettings

# The name under which the host looks for a function's settings.
Settings = GatewaySettings

__all__ = ["GatewaySettings", "Settings", "serve"]
