"""Rate-limited log of quarantine: the first message of a reason, then a count per minute."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from functions.domain.quarantine import Refusal
from functions.domain.topics import Topic
from runtime import Context

WINDOW_S = 60.0
_REFUSED = "More messages went into quarantine"
_UNKEPT = "More refused messages were counted and not kept"

_Key = tuple[str, str, str]


@dataclass(slots=True, eq=False)
class _Window:
    """One minute of one function's refusals of a kind: a sentence, and what to tell beside it."""

    log: Any
    sentence: str
    ends_s: float
    fields: Mapping[str, str] = field(default_factory=dict)
    more: int = 0


_windows: dict[_Key, _Window] = {}


def log_refusals(
    ctx: Context[Any], refusals: Iterable[Refusal], unkept: Mapping[str, int] | None = None
) -> None:
    """Log that messages were refused, at most two lines a minute per function and reason.

    Call it after the messages are stored. The lines hold no payload and no token.

    Args:
        ctx: of the function.
        refusals: why they were refused.
        unkept: how many of them quarantine had no room for, by tenant: further lines, at most two a
            minute per function and tenant.
    """
    for refusal in refusals:
        if (window := _enter(ctx, _REFUSED, refusal.kind, reason=refusal.reason)) is not None:
            window.more += 1
            continue
        topic = refusal.topic
        device = (
            {"tenant_id": topic.tenant_id, "device_id": topic.device_id}
            if isinstance(topic, Topic)
            else {}
        )
        ctx.log.warning(
            "A message went into quarantine", reason=refusal.reason, detail=refusal.detail, **device
        )
    for tenant_id, messages in (unkept or {}).items():
        # Tenants that do not exist count together, so the tenants are a bounded number.
        if (window := _enter(ctx, _UNKEPT, tenant_id, tenant_id=tenant_id)) is not None:
            window.more += messages
            continue
        ctx.log.warning(
            "Quarantine has no room for a tenant: refused messages are counted and not kept",
            tenant_id=tenant_id,
            messages=messages,
        )


def _enter(ctx: Context[Any], sentence: str, about: str, **fields: str) -> _Window | None:
    """The window that is open; None when this call opened one, whose first line is due."""
    key = (ctx.function, sentence, about)
    window = _windows.get(key)
    now_s = time.monotonic()
    if window is not None and now_s < window.ends_s:
        return window
    if window is not None:
        _end(key, window)
    window = _windows[key] = _Window(ctx.log, sentence, now_s + WINDOW_S, fields)
    asyncio.get_running_loop().call_later(WINDOW_S, _end, key, window)
    return None


def _end(key: _Key, window: _Window) -> None:
    if _windows.get(key) is not window:
        return
    del _windows[key]
    if window.more:
        window.log.warning(
            window.sentence,
            **window.fields,
            messages=window.more,
            within_s=round(WINDOW_S),
        )


__all__ = ["log_refusals"]
