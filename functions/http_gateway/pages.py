"""The gateway's own pages: health, the OpenAPI document, and a page that shows it."""

from importlib.resources import files

import orjson
from starlette.requests import Request
from starlette.responses import Response

from functions.http_gateway.named_schemas import NamedSchemas
from functions.http_gateway.openapi import draw_openapi
from functions.http_gateway.routes import RouteTable

_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS = {
    "": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
    "/docs.css": ("docs.css", "text/css"),
}


class Pages:
    """Answers from the route table and from files beside this module.

    Args:
        table: the routes that are served.
        schemas: what the schemas of requests leave open.
    """

    def __init__(self, table: RouteTable, schemas: NamedSchemas) -> None:
        self._table = table
        self._schemas = schemas
        self._drawn: tuple[tuple[int, bytes], bytes] = ((-1, b""), b"")
        folder = files(__package__) / "page"
        self._assets = {
            path: (folder.joinpath(name).read_bytes(), media_type)
            for path, (name, media_type) in _ASSETS.items()
        }

    async def healthz(self, request: Request) -> Response:
        """The gateway's liveness; the host's `/readyz` says whether NATS is connected."""
        body = orjson.dumps({"status": "ok", "routes": len(self._table)})
        return Response(body, media_type="application/json")

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document, made again after routes or schemas have changed."""
        schemas = await self._schemas.read(self._table)
        of = (self._table.revision, orjson.dumps(schemas))
        if self._drawn[0] != of:
            self._drawn = (of, orjson.dumps(draw_openapi(self._table, schemas)))
        return Response(self._drawn[1], media_type="application/json")

    async def docs(self, request: Request) -> Response:
        """A file of the documentation page."""
        body, media_type = self._assets[request.url.path.removeprefix("/docs")]
        return Response(
            body, headers={"Content-Security-Policy": _CONTENT_POLICY}, media_type=media_type
        )
