"""Runs the gateway's server and discovery from start to drain."""

import asyncio

from functions.domain.rate_sharing import RateSharing
from functions.http_gateway.application import build_application
from functions.http_gateway.device_proofs import DeviceProofs
from functions.http_gateway.discovery import RouteDiscovery
from functions.http_gateway.door_rates import DoorRates
from functions.http_gateway.http1 import Server
from functions.http_gateway.keys import is_set
from functions.http_gateway.listener import make_server, open_listener
from functions.http_gateway.rate_store import RateStore
from functions.http_gateway.registry_changes import RegistryChanges, follow_registry
from functions.http_gateway.routes import RouteTable
from functions.http_gateway.settings import GatewaySettings
from functions.http_gateway.tenant_keys import TenantKeys
from runtime import Context


async def serve(ctx: Context) -> None:
    """Serve HTTP until the host stops; then answer the requests in progress, and return.

    Raises:
        ConfigError: the port cannot be opened.
    """
    settings: GatewaySettings = ctx.settings
    listener = open_listener(settings.host, settings.port)
    table = RouteTable()
    discovery = RouteDiscovery(ctx, table)
    changes = RegistryChanges()
    proofs, keys = DeviceProofs(ctx, changes), TenantKeys(ctx, changes)
    rates = DoorRates(settings)
    sharing = RateSharing("gateway", rates.limiters, RateStore(ctx), ctx.log, has_own_clock=True)
    application = build_application(ctx, table, discovery, proofs, keys, rates=rates)
    server = make_server(application, settings, ctx.log)
    _warn_of_missing_keys(ctx, settings)
    host, port = listener.getsockname()[:2]
    tasks = [
        asyncio.create_task(discovery.run()),
        asyncio.create_task(follow_registry(ctx, changes)),
        asyncio.create_task(_stop_with(ctx.stopping, server, settings.linger_s)),
    ]
    if rates.limiters and settings.require_token:
        sharing.start()
    try:
        ctx.log.info("The gateway listens.", host=host, port=port)
        await server.serve(listener)
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await sharing.stop()
        await discovery.close()
        await proofs.close()
        await keys.close()
    ctx.log.info("All requests are answered.", port=port)


async def _stop_with(stopping: asyncio.Event, server: Server, linger_s: float) -> None:
    await stopping.wait()
    # A connection that is closed before its request was read is a failed request for its client.
    await asyncio.sleep(linger_s)
    server.stop()


def _warn_of_missing_keys(ctx: Context, settings: GatewaySettings) -> None:
    if not is_set(settings.admin_key):
        ctx.log.warning("No admin key: every route that needs it is refused.", setting="admin_key")
    if not is_set(settings.bridge_key):
        ctx.log.debug("No bridge key: EMQX is answered 503.", setting="bridge_key")
