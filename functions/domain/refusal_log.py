"""Rate-limited log of quarantine: the first message of a reason, then a count per minute."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from functions.domain.quarantine import Refusal
from functions.domain.topics import Topic
from runtime import Context

WINDOW_S = 60.0


@dataclass(slots=True, eq=False)
class _Window:
    """One minute of one function's refusals for one reason."""

    log: Any
    reason: str
    ends_s: float
    more: int = 0


_windows: dict[tuple[str, str], _Window] = {}


def log_refusals(ctx: Context[Any], refusals: Iterable[Refusal]) -> None:
    """Log that messages were quarantined, at most two lines a minute per function and reason.

    Call it after the messages are stored. The lines hold no payload and no token.
    """
    now_s = time.monotonic()
    for refusal in refusals:
        key = (ctx.function, refusal.reason)
        window = _windows.get(key)
        if window is not None and now_s < window.ends_s:
            window.more += 1
            continue
        if window is not None:
            _end(key, window)
        window = _windows[key] = _Window(ctx.log, refusal.reason, now_s + WINDOW_S)
        asyncio.get_running_loop().call_later(WINDOW_S, _end, key, window)
        topic = refusal.topic
        device = (
            {"tenant_id": topic.tenant_id, "device_id": topic.device_id}
            if isinstance(topic, Topic)
            else {}
        )
        ctx.log.warning(
            "A message went into quarantine", reason=refusal.reason, detail=refusal.detail, **device
        )


def _end(key: tuple[str, str], window: _Window) -> None:
    if _windows.get(key) is not window:
        return
    del _windows[key]
    if window.more:
        window.log.warning(
            "More messages went into quarantine",
            reason=window.reason,
            messages=window.more,
            within_s=round(WINDOW_S),
        )


__all__ = ["log_refusals"]
