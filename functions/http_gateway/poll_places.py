"""Which devices may wait for their commands. No input or output."""

import asyncio


class PollPlaces:
    """Places for polls that wait, one for each device; tenants share them evenly.

    A device beyond the limit takes the place of the poll that waits for the longest time of the
    tenant with the most, unless its own tenant has as many.

    Args:
        most: how many polls may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        # By tenant and device, in the order in which they came.
        self._waiting: dict[str, dict[str, asyncio.Event]] = {}

    def take(self, tenant_id: str, device_id: str) -> asyncio.Event | None:
        """A place; None without room. The event is set when the poll must end, for another one.

        An earlier poll of the device ends.
        """
        of_tenant = self._waiting.get(tenant_id, {})
        if device_id in of_tenant:
            self._end(tenant_id, device_id)
        elif self._count >= self._most and not self._make_room(len(of_tenant)):
            return None
        ended = asyncio.Event()
        self._waiting.setdefault(tenant_id, {})[device_id] = ended
        self._count += 1
        return ended

    def leave(self, tenant_id: str, device_id: str, ended: asyncio.Event) -> None:
        """Give a place back, unless another poll has it already."""
        if self._waiting.get(tenant_id, {}).get(device_id) is ended:
            self._end(tenant_id, device_id)

    def _make_room(self, own: int) -> bool:
        largest = max(
            self._waiting, key=lambda tenant_id: len(self._waiting[tenant_id]), default=None
        )
        if largest is None or len(self._waiting[largest]) <= own + 1:
            return False
        self._end(largest, next(iter(self._waiting[largest])))
        return True

    def _end(self, tenant_id: str, device_id: str) -> None:
        of_tenant = self._waiting[tenant_id]
        of_tenant.pop(device_id).set()
        self._count -= 1
        if not of_tenant:
            del self._waiting[tenant_id]


__all__ = ["PollPlaces"]
