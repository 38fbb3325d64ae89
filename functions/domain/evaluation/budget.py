"""How much processor time the expressions of a tenant may use. Does no I/O."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from functions.domain.evaluation.values import Steps

_MAX_TENANTS = 10_000
_MAX_KNOWN = 100_000
_KB = 1000


@dataclass(frozen=True, slots=True)
class EvaluationLimits:
    """The bounds, in seconds of processor time.

    What is usual costs a tenant nothing, so that no rate of messages exceeds a budget by itself:
    converting a message takes 1.3 µs for each of its values, and a filter 0.4 to 1 µs beyond that.

    Attributes:
        stop_s: of one ask, which is stopped then.
        stop_costs_s: what a stop costs beyond the ask: another process, without compiled
            expressions.
        burst_s: what a tenant may use beyond the usual at once.
        share: what it may use beyond the usual in each second.
        burst_of_all_s: what all tenants together may use so at once.
        share_of_all: and in each second.
        usual_of_message_s: usual for each message.
        usual_of_kilobyte_s: usual for each 1000 bytes of messages.
        usual_of_ask_s: usual for each ask.
        quick_s: an ask that took less than this the last time is quick. Quick ones come first, and
            are evaluated even for a tenant that has used its burst.
    """

    stop_s: float = 0.1
    stop_costs_s: float = 0.05
    burst_s: float = 0.5
    share: float = 0.05
    burst_of_all_s: float = 1.0
    share_of_all: float = 0.3
    usual_of_message_s: float = 200e-6
    usual_of_kilobyte_s: float = 100e-6
    usual_of_ask_s: float = 10e-6
    quick_s: float = 1e-3

    def usual_s(self, messages: int, size_bytes: int, asks: int) -> float:
        """What is usual for so much work."""
        return (
            messages * self.usual_of_message_s
            + size_bytes / _KB * self.usual_of_kilobyte_s
            + asks * self.usual_of_ask_s
        )


class Budgets:
    """What each tenant, and all of them together, may still use beyond the usual.

    A tenant's state is what it has used beyond the usual, which its share pays back.
    """

    def __init__(
        self, limits: EvaluationLimits, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._now_s = now_s
        self._used: dict[str, tuple[float, float]] = {}
        self._used_by_all = (0.0, now_s())

    def left_s(self, tenant_id: str) -> float:
        """What the tenant may use now beyond the usual; never below 0."""
        used_s = _paid_back(self._used.get(tenant_id), self._limits.share, self._now_s())
        return max(0.0, min(self._limits.burst_s - used_s, self.left_of_all_s()))

    def left_of_all_s(self) -> float:
        """What all tenants together may use now beyond the usual; never below 0."""
        used_s = _paid_back(self._used_by_all, self._limits.share_of_all, self._now_s())
        return max(0.0, self._limits.burst_of_all_s - used_s)

    def charge(self, tenant_id: str, spent_s: float, usual_s: float) -> None:
        """Charge what a tenant's expressions have used beyond the usual."""
        if spent_s <= usual_s:
            return
        limits, now_s = self._limits, self._now_s()
        beyond_s = spent_s - usual_s
        if tenant_id not in self._used and len(self._used) >= _MAX_TENANTS:
            self._forget_paid(now_s)
        used_s = _paid_back(self._used.get(tenant_id), limits.share, now_s)
        self._used[tenant_id] = (used_s + beyond_s, now_s)
        used_by_all_s = _paid_back(self._used_by_all, limits.share_of_all, now_s)
        self._used_by_all = (used_by_all_s + beyond_s, now_s)

    def _forget_paid(self, now_s: float) -> None:
        share = self._limits.share
        owing = {key: used for key, used in self._used.items() if _paid_back(used, share, now_s)}
        # So many that owe at once are no tenants: the bound on all of them holds meanwhile.
        self._used = owing if len(owing) < _MAX_TENANTS // 2 else {}


def _paid_back(used: tuple[float, float] | None, share: float, now_s: float) -> float:
    """What is left of a use, after its share of the time since then has paid for it."""
    return 0.0 if used is None else max(0.0, used[0] - share * (now_s - used[1]))


class QuickAsks:
    """Which expressions of which tenants took little time the last time."""

    def __init__(self, quick_s: float) -> None:
        self._quick_s = quick_s
        self._known: set[tuple[str, Steps]] = set()

    def has(self, tenant_id: str, steps: Steps) -> bool:
        """Whether they are quick; False for unknown ones."""
        return (tenant_id, steps) in self._known

    def learn(self, tenant_id: str, steps: Steps, spent_s: float) -> None:
        """Take note of how long they took."""
        key = (tenant_id, steps)
        if spent_s >= self._quick_s:
            self._known.discard(key)
        elif key not in self._known:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known.add(key)


__all__ = ["Budgets", "EvaluationLimits", "QuickAsks"]
