"""Which provider accounts work at present, as far as this process knows. No I/O."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["works", "failed", "broken"]

FAILURES = 3
PAUSE_S = 30.0
LONGEST_PAUSE_S = 600.0


@dataclass(slots=True)
class _State:
    failures: int = 0
    pauses: int = 0
    until_s: float = 0.0


class AccountHealth:
    """Pauses an account that fails, so that messages take the next one.

    An account that is `broken` (it cannot be connected to, or its credentials are refused) is
    paused at once, another one after `FAILURES` failures in a row. After the pause one message
    tries it. Each further pause is twice as long, up to `LONGEST_PAUSE_S`; a success ends them.

    The caller passes the times, all from one monotonic clock.
    """

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def wait_s(self, account: str, now_s: float) -> float:
        """Seconds until the account may be tried; 0 for now."""
        state = self._states.get(account)
        return max(0.0, state.until_s - now_s) if state is not None else 0.0

    def begin(self, account: str, now_s: float) -> None:
        """A message is sent through the account; after a pause it is the only one for a while."""
        state = self._states.get(account)
        if state is not None and state.pauses:
            state.until_s = now_s + PAUSE_S

    def end(self, account: str, verdict: Verdict, now_s: float) -> None:
        """A message was sent through the account, or could not be."""
        if verdict == "works":
            self._states.pop(account, None)
            return
        state = self._states.setdefault(account, _State())
        state.failures += 1
        if verdict == "broken" or state.failures >= FAILURES or state.pauses:
            state.until_s = now_s + min(PAUSE_S * 2**state.pauses, LONGEST_PAUSE_S)
            state.pauses = min(state.pauses + 1, 10)
            state.failures = 0


__all__ = ["FAILURES", "LONGEST_PAUSE_S", "PAUSE_S", "AccountHealth", "Verdict"]
