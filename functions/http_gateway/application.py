"""Builds the ASGI application: the gateway's own paths, and the forwarder for all others."""

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from functions.http_gateway.bodies import BodyReader
from functions.http_gateway.boundary import Boundary
from functions.http_gateway.caller_admission import CallerAdmission
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.command_polls import CommandPolls
from functions.http_gateway.device_admission import DeviceAdmission
from functions.http_gateway.device_commands import DeviceCommands
from functions.http_gateway.device_ingest import DeviceIngest
from functions.http_gateway.device_proofs import DeviceProofs
from functions.http_gateway.device_resources import INGEST, METHODS, Resource, resource_of
from functions.http_gateway.device_shadow import DeviceShadow
from functions.http_gateway.discovery import RouteDiscovery
from functions.http_gateway.door_rates import DoorRates
from functions.http_gateway.emqx_bridge import EmqxBridge
from functions.http_gateway.forwarding import Forwarder
from functions.http_gateway.host_names import HostNames
from functions.http_gateway.named_schemas import NamedSchemas
from functions.http_gateway.pages import Pages
from functions.http_gateway.paths import decode_segments
from functions.http_gateway.problems import ProblemError, code_of, tell_methods, title
from functions.http_gateway.requests import Request
from functions.http_gateway.routes import RouteTable
from functions.http_gateway.storing import Storage
from functions.http_gateway.tenant_keys import TenantKeys
from runtime import Context


def build_application(
    ctx: Context,
    table: RouteTable,
    discovery: RouteDiscovery,
    proofs: DeviceProofs,
    keys: TenantKeys,
    *,
    rates: DoorRates,
) -> ASGIApp:
    """The gateway as an ASGI application."""
    pages = Pages(table, NamedSchemas(ctx))
    storage = Storage(ctx)
    bodies = BodyReader(ctx.settings.read_timeout_s, ctx.settings.max_buffered_bytes)
    addresses = ClientAddresses(ctx.settings.trusted_proxies)
    is_proved = ctx.settings.require_token
    admission = DeviceAdmission(ctx, proofs, addresses, rates) if is_proved else None
    polls = CommandPolls(ctx)
    device_ingest = DeviceIngest(ctx, storage, bodies, admission, polls)
    device_commands = DeviceCommands(bodies, admission, polls)
    device_shadow = DeviceShadow(ctx, bodies, admission)
    emqx_bridge = EmqxBridge(ctx, storage, bodies, addresses)
    forwarder = Forwarder(ctx, table, discovery, bodies, CallerAdmission(ctx, keys, addresses))

    async def bridge(scope: Scope, receive: Receive, send: Send) -> None:
        response = await emqx_bridge(Request(scope, receive))
        await response(scope, receive, send)

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        response = await forwarder(Request(scope, receive))
        await response(scope, receive, send)

    router = Router(
        routes=[
            Route("/healthz", pages.healthz),
            Route("/openapi.json", pages.openapi),
            Route("/docs", pages.docs),
            Route("/docs/docs.js", pages.docs),
            Route("/docs/docs.css", pages.docs),
            Route("/bridge/v1/mqtt", _Endpoint(bridge), methods=["POST"]),
        ],
        redirect_slashes=False,
        # Not a catch-all route: a request with a wrong method for a path above would match that
        # route and not get 405.
        default=forward,
    )
    return Boundary(
        _Paths(router, device_ingest, device_commands, device_shadow),
        max_concurrent=ctx.settings.max_concurrent,
        hosts=HostNames(ctx.settings.host, ctx.settings.allowed_hosts),
        log=ctx.log,
    )


class _Endpoint:
    """An ASGI application as the endpoint of a route, which takes a plain function for another."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _Paths:
    """Sends what devices post and ask to its place, and everything else through the router.

    The router and what belongs to it take 30 us a request, as long as publishing a message does.
    """

    def __init__(
        self,
        router: Router,
        device_ingest: DeviceIngest,
        device_commands: DeviceCommands,
        device_shadow: DeviceShadow,
    ) -> None:
        self._router = ExceptionMiddleware(router, handlers={HTTPException: _as_problem})
        self._device_ingest = device_ingest
        self._of_devices: dict[Resource, ASGIApp] = {
            "messages": device_ingest,
            "commands": device_commands,
            "shadow": device_shadow,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(INGEST):
            if scope["method"] == "POST":
                await self._device_ingest(scope, receive, send)
            else:
                await self._ask(scope, receive, send)
            return
        # Only within an application does the router raise its 405.
        scope["app"] = self
        await self._router(scope, receive, send)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        resource = resource_of(decode_segments(scope["raw_path"]))
        methods = METHODS[resource]
        if scope["method"] in methods:
            await self._of_devices[resource](scope, receive, send)
            return
        await tell_methods(scope["method"], methods)(scope, receive, send)


async def _as_problem(request: StarletteRequest, failure: Exception) -> Response:
    """Turn the router's own 404 and 405 into problem details; answer OPTIONS with 204."""
    if not isinstance(failure, HTTPException):
        raise failure
    headers = dict(failure.headers or {})
    if "Allow" in headers:
        return tell_methods(request.method, sorted(headers["Allow"].split(", ")))
    status = failure.status_code
    raise ProblemError(status, code_of(status), f"{title(status)}.", headers=headers)
