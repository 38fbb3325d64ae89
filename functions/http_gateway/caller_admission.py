"""Lets only callers pass whom the route of a request admits."""

from functions.http_gateway.bearer import BearerTokens
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.keys import KeyCheck, require_admin
from functions.http_gateway.requests import Request
from functions.http_gateway.routes import HttpRoute
from functions.http_gateway.tenant_keys import TenantAdmission, TenantKeys
from runtime import Context


class CallerAdmission:
    """Checks the key that a route asks for.

    Attributes:
        tokens: requires a token that the endpoint checks.
    """

    def __init__(self, ctx: Context, keys: TenantKeys, addresses: ClientAddresses) -> None:
        self.tokens = BearerTokens(ctx, addresses)
        self._admin = KeyCheck(ctx, ctx.settings.admin_key, "admin", addresses)
        self._tenants = TenantAdmission(ctx, self._admin, keys, addresses)

    async def require(self, request: Request, route: HttpRoute) -> str | None:
        """Require the key that the route asks for; the tenant whose key it is, if it is one's.

        Raises:
            ProblemError: 401, 403, 429 or 503, as the key's check says.
        """
        if route.auth == "admin":
            require_admin(request, self._admin)
        elif route.auth == "tenant":
            return await self._tenants.require(request)
        return None
