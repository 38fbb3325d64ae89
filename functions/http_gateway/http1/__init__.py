"""An HTTP/1.1 server for ASGI applications, with a bound for everything that a client decides.

Layers: `reader` makes requests of bytes, `exchange` is one request with its response, `connection`
does the input and output of one client, `server` has all connections.
"""

from functions.http_gateway.http1.server import Server, ServerLimits

__all__ = ["Server", "ServerLimits"]
