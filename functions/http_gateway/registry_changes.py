"""Hears which devices and tenants have changed, so that older answers about them do not count."""

import asyncio

import orjson

from functions.domain.changes import EVERYTHING
from functions.domain.registry_changes import MOST_WAIT_S, SUBJECT
from runtime import Context, RequestFailed, Unavailable, Unsendable

_ANSWER_WITHIN_S = 3.0
_AGAIN_AFTER_S = 1.0
# Changes of one moment come together.
_PAUSE_S = 0.05
# The endpoint that judges claims hears of a change by itself, maybe a moment later.
_DOUBT_S = 1.0
_MOST_KEPT = 10_000
_NEVER = float("-inf")


class RegistryChanges:
    """The times of the last changes, by the loop's clock.

    What is not heard is no fault: answers about devices are used for `token_cache_s` at most.
    """

    def __init__(self) -> None:
        self._changed_at_s: dict[str, float] = {}
        self._all_changed_at_s = _NEVER

    def is_current(self, at_s: float, tenant_id: str, device_id: str = "") -> bool:
        """Whether an answer of this time was given after the last change of tenant and device."""
        changed = self._changed_at_s
        if not changed:
            return at_s > self._all_changed_at_s + _DOUBT_S
        changed_at_s = max(
            self._all_changed_at_s,
            changed.get(f"tenant/{tenant_id}", _NEVER),
            changed.get(f"device/{tenant_id}/{device_id}", _NEVER),
        )
        return at_s > changed_at_s + _DOUBT_S

    def hear(self, change: str) -> None:
        """Note a change, as `functions.domain.registry_changes` tells it."""
        now_s = asyncio.get_running_loop().time()
        if change == EVERYTHING or len(self._changed_at_s) >= _MOST_KEPT:
            self._changed_at_s.clear()
            self._all_changed_at_s = now_s
        else:
            self._changed_at_s[change] = now_s


async def follow_registry(ctx: Context, changes: RegistryChanges) -> None:
    """Listen for changes until cancelled."""
    position = ""
    while True:
        try:
            position = await _ask(ctx, changes, position)
            await asyncio.sleep(_PAUSE_S)
        except (RequestFailed, Unavailable, Unsendable):
            # Older hosts have no such endpoint.
            position = ""
            await asyncio.sleep(_AGAIN_AFTER_S)
        except (ValueError, KeyError, TypeError):
            position = ""
            ctx.log.exception("The changes of the registry are an answer that is none.")
            await asyncio.sleep(_AGAIN_AFTER_S)


async def _ask(ctx: Context, changes: RegistryChanges, position: str) -> str:
    asked = orjson.dumps({"after": position, "wait_s": MOST_WAIT_S})
    limit_s = MOST_WAIT_S + _ANSWER_WITHIN_S
    reply = await ctx.request(SUBJECT, asked, timeout_s=limit_s)
    told = orjson.loads(reply.data)
    for change in told["changes"]:
        changes.hear(change)
    return str(told["position"])


__all__ = ["RegistryChanges", "follow_registry"]
