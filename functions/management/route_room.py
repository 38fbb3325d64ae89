"""The bound on a tenant's routes: each route may make a job of each of the tenant's messages."""

from pathlib import Path

from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor
from functions.management.tenants import tenant_not_found
from runtime import Reject

_QUERIES = read_queries(Path(__file__).with_name("route_room.sql"))


async def check_room(connection: Executor, tenant_id: str, max_routes: int) -> None:
    """Check that the tenant may have one more route, which the same transaction adds.

    Raises:
        Reject: there is no such tenant, or it has `max_routes` already.
    """
    if not await connection.fetch(_QUERIES["lock_tenant"], tenant_id):
        raise tenant_not_found()
    [[routes]] = await connection.fetch(_QUERIES["count_routes"], tenant_id)
    if routes >= max_routes:
        raise Reject(
            "TOO_MANY_ROUTES", f"The tenant has {routes} routes, and may have no more.", status=409
        )


__all__ = ["check_room"]
