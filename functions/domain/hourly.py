"""Says what concerns a tenant once an hour."""

_HOUR_S = 3600
_MAX_TENANTS = 10_000


class Hourly:
    """Remembers in which hour each tenant was told last. Bounded: a full one forgets all."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def is_due(self, tenant_id: str, now_s: float) -> bool:
        """Whether the tenant was not told in this hour of the clock; from now on it was."""
        hour = int(now_s) // _HOUR_S
        if self._told.get(tenant_id) == hour:
            return False
        if len(self._told) >= _MAX_TENANTS:
            self._told.clear()
        self._told[tenant_id] = hour
        return True


__all__ = ["Hourly"]
