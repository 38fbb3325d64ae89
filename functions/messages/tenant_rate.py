"""Decides when a message of a tenant with a rate is sent. No I/O; all hosts share the state.

The state is a row in PostgreSQL, and the clock is PostgreSQL's, so the rate holds across hosts. A
message beyond the rate is told when to come back: each at a time of its own, in the order of their
arrival, so that ten thousand waiting messages do not all ask again each second.
"""

from dataclasses import dataclass, replace

EARLY_S = 0.5
"""A message that comes back so much before its time is not sent away again."""
_ROUNDING_S = 1e-6


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many messages at once, then `per_s`."""

    per_s: float
    burst: int


@dataclass(frozen=True, slots=True)
class RateState:
    """A tenant's token bucket and the ends of its waiting lines, in Unix seconds.

    Attributes:
        due_at_s: the theoretical arrival time of the generic cell rate algorithm.
        high_until_s, others_until_s: when the last waiting message of each line comes back.
    """

    due_at_s: float = 0.0
    high_until_s: float = 0.0
    others_until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the message is sent.

    Attributes:
        wait_s: when it shall come back; 0 when it is sent now.
        state: the state after the decision.
    """

    wait_s: float
    state: RateState


def decide(
    limit: RateLimit, state: RateState, now_s: float, *, is_high: bool, come_back_at_s: float | None
) -> Decision:
    """Take a token, or choose the time at which the message comes back.

    A message of high priority waits in a line of its own and may take one token in advance, which
    the others pay for: it does not wait behind the tenant's own bulk.

    Args:
        limit: the tenant's rate.
        state: the state that all hosts share.
        now_s: the database's time.
        is_high: whether the message has high priority.
        come_back_at_s: the time that an earlier decision gave this message; None for none.
    """
    interval_s = 1 / limit.per_s
    tolerance_s = interval_s * (limit.burst if is_high else limit.burst - 1)
    # A state far in the future stems from a slower rate that was replaced, or from another clock.
    due_at_s = min(max(state.due_at_s, now_s), now_s + tolerance_s + 2 * interval_s)
    line_until_s = state.high_until_s if is_high else state.others_until_s
    is_due = come_back_at_s is not None and come_back_at_s <= now_s + EARLY_S
    missing_s = due_at_s - now_s - tolerance_s
    if missing_s <= _ROUNDING_S and (is_due or line_until_s <= now_s):
        return Decision(0.0, replace(state, due_at_s=due_at_s + interval_s))
    if come_back_at_s is not None and not is_due:
        return Decision(come_back_at_s - now_s, state)
    if is_due:
        # Its time has come, but another one was faster: only a moment more.
        return Decision(max(missing_s, 0.01), state)
    until_s = max(line_until_s, now_s + max(0.0, missing_s) - interval_s) + interval_s
    line = {"high_until_s": until_s} if is_high else {"others_until_s": until_s}
    return Decision(max(until_s - now_s, 0.01), replace(state, **line))


__all__ = ["Decision", "RateLimit", "RateState", "decide"]
