"""Client for the parts of the management API that the demonstration uses."""

import secrets
import time
from typing import Any

import httpx

from demo.host import DemoError, RunningHost

TENANT = "test"
DEVICE = "dev1"
SITE = "s1"
TOKEN = secrets.token_urlsafe(24)
"""The device's token in this run; the API refuses one that can be guessed."""
ROUTE = "demo"

_API = "/api/v1"
_TENANT = f"{_API}/tenants/{TENANT}"
_DEVICE = f"{_TENANT}/devices/{DEVICE}"
_DISCOVERY_S = 40.0
_NOT_FOUND = 404
_CONFLICT = 409


class Api:
    """Calls the API through the gateway, with the admin key."""

    def __init__(self, host: RunningHost) -> None:
        self._url = host.gateway_url
        self._client = httpx.Client(
            base_url=host.gateway_url,
            headers={"authorization": f"Bearer {host.admin_key}"},
            timeout=10.0,
            trust_env=False,
        )

    def prepare(self, webhook_url: str, secret: str) -> str:
        """Create or update tenant, device and route; return the route's id."""
        self._wait_until_served()
        self._ask("POST", f"{_API}/tenants", {"tenant_id": TENANT}, accept=_CONFLICT)
        device = {"device_id": DEVICE, "site_id": SITE, "provision_token": TOKEN}
        if self._ask("POST", f"{_TENANT}/devices", device, accept=_CONFLICT) is None:
            self._ask("POST", f"{_DEVICE}/rotate-token", {"provision_token": TOKEN})
            self._ask("POST", f"{_DEVICE}/reactivate")
        destination = {"url": webhook_url, "secret": secret}
        routes = self._ask("GET", f"{_TENANT}/routes")["items"]
        known = next((route["route_id"] for route in routes if route["name"] == ROUTE), None)
        route = {
            "name": ROUTE,
            "topic_filter": f"tenant/{TENANT}/device/+/telemetry",
            "destination_config": destination,
            "is_enabled": True,
        }
        if known is None:
            made = self._ask("POST", f"{_TENANT}/routes", route | {"destination_type": "webhook"})
            return str(made["route_id"])
        self._ask("PATCH", f"{_TENANT}/routes/{known}", route)
        return str(known)

    def disable_route(self, route_id: str) -> None:
        """Disable the route, since its receiver ends with the demonstration."""
        self._ask("PATCH", f"{_TENANT}/routes/{route_id}", {"is_enabled": False})

    def post_telemetry(self, payload: dict[str, Any]) -> None:
        """Send one message as an HTTP device does."""
        path = f"/ingest/v1/tenant/{TENANT}/device/{DEVICE}/telemetry"
        self._ask("POST", path, payload)

    def rows(self, run: int, since: str) -> list[dict[str, Any]]:
        """The device's rows of a run."""
        items = self._ask("GET", f"{_DEVICE}/telemetry", query={"from": since})["items"]
        return [row for row in items if row["metrics"].get("run") == run]

    def refusals(self, since: str) -> list[str]:
        """Reason codes of the messages quarantined since `since`."""
        query = {"tenant_id": TENANT, "since": since}
        items = self._ask("GET", f"{_API}/quarantine", query=query)["items"]
        return sorted({item["reason"] for item in items})

    def attempt_errors(self, route_id: str, since: str) -> list[str]:
        """Error codes of the delivery attempts since `since`."""
        query = {"tenant_id": TENANT, "route_id": route_id, "since": since}
        items = self._ask("GET", f"{_API}/delivery-attempts", query=query)["items"]
        return sorted({item["error_code"] for item in items if item["error_code"]})

    def _wait_until_served(self) -> None:
        # The gateway discovers the API's endpoints within a few seconds after its start.
        until = time.monotonic() + _DISCOVERY_S
        while self._ask("GET", f"{_API}/tenants", accept=_NOT_FOUND) is None:
            if time.monotonic() > until:
                raise DemoError(
                    f"{self._url} does not serve the management API: did `make run` start it?"
                )
            time.sleep(0.2)

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        query: dict[str, str] | None = None,
        accept: int | None = None,
    ) -> Any:  # noqa: ANN401 - JSON
        try:
            answer = self._client.request(method, path, json=body, params=query)
        except httpx.TransportError:
            raise DemoError(f"Nothing answers at {self._url}: start `make run` first.") from None
        if answer.status_code == accept:
            return None
        if answer.status_code in {401, 403}:
            raise DemoError("The gateway refuses the admin key: does the host use another one?")
        if not answer.is_success:
            raise DemoError(f"{method} {path} was answered {answer.status_code}: {answer.text}")
        return answer.json() if answer.content else {}
