"""Builds the ASGI application: the gateway's own paths, and the forwarder for all others."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from functions.http_gateway.bodies import BodyReader
from functions.http_gateway.boundary import Boundary
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.device_admission import DeviceAdmission
from functions.http_gateway.device_ingest import DeviceIngest
from functions.http_gateway.device_proofs import DeviceProofs
from functions.http_gateway.discovery import RouteDiscovery
from functions.http_gateway.emqx_bridge import EmqxBridge
from functions.http_gateway.forwarding import Forwarder
from functions.http_gateway.host_names import HostNames
from functions.http_gateway.pages import Pages
from functions.http_gateway.problems import ProblemError, code_of, title
from functions.http_gateway.routes import RouteTable
from functions.http_gateway.storing import Storage
from runtime import Context


def build_application(
    ctx: Context, table: RouteTable, discovery: RouteDiscovery, proofs: DeviceProofs
) -> Starlette:
    """The gateway as an ASGI application."""
    pages = Pages(table)
    storage = Storage(ctx)
    bodies = BodyReader(ctx.settings.read_timeout_s, ctx.settings.max_buffered_bytes)
    addresses = ClientAddresses(ctx.settings.trusted_proxies)
    admission = DeviceAdmission(ctx, proofs, addresses) if ctx.settings.require_token else None
    device_ingest = DeviceIngest(ctx, storage, bodies, admission)
    emqx_bridge = EmqxBridge(ctx, storage, bodies, addresses)
    forwarder = Forwarder(ctx, table, discovery, bodies, addresses)

    async def ingest(request: Request) -> Response:
        return await device_ingest(request)

    async def bridge(request: Request) -> Response:
        return await emqx_bridge(request)

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        response = await forwarder(Request(scope, receive, send))
        await response(scope, receive, send)

    application = Starlette(
        routes=[
            Route("/healthz", pages.healthz),
            Route("/openapi.json", pages.openapi),
            Route("/docs", pages.docs),
            Route("/docs/docs.js", pages.docs),
            Route("/docs/docs.css", pages.docs),
            Route("/ingest/v1/tenant/{rest:path}", ingest, methods=["POST"]),
            Route("/bridge/v1/mqtt", bridge, methods=["POST"]),
        ],
        middleware=[
            Middleware(
                Boundary,
                max_concurrent=ctx.settings.max_concurrent,
                hosts=HostNames(ctx.settings.host, ctx.settings.allowed_hosts),
                log=ctx.log,
            )
        ],
        exception_handlers={HTTPException: _as_problem},
    )
    # Not a catch-all route: a request with a wrong method for a path above would match that route
    # and not get 405.
    application.router.default = forward
    application.router.redirect_slashes = False
    return application


async def _as_problem(request: Request, failure: Exception) -> Response:
    """Turn the router's own 404 and 405 into problem details; answer OPTIONS with 204."""
    if not isinstance(failure, HTTPException):
        raise failure
    headers = dict(failure.headers or {})
    if request.method == "OPTIONS" and "Allow" in headers:
        return Response(status_code=204, headers={"Allow": f"{headers['Allow']}, OPTIONS"})
    status = failure.status_code
    raise ProblemError(status, code_of(status), f"{title(status)}.", headers=headers)
