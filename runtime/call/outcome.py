"""The outcomes of a call as values, and the wait before another attempt. Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.context import RetrySchedule
from runtime.manifest.model import RetrySpec
from runtime.user_frames import where_of


@dataclass(frozen=True, slots=True)
class Done:
    """The effect is durable."""


class EncodedResult(NamedTuple):
    """What an endpoint's function returned.

    Attributes:
        data: the payload of the reply.
        is_undeclared_json: whether the payload is JSON of a function that declares no schema of its
            reply, so that nobody could know it.
    """

    data: bytes
    is_undeclared_json: bool = False


@dataclass(frozen=True, slots=True)
class Later:
    """Another attempt is due.

    Attributes:
        delay_s: least time to wait, in seconds.
        outage: the exception, when it says that a server is unavailable. When a check confirms the
            outage, the attempt does not count; otherwise `Dispatcher.judge` the exception again.
        note: a warning for the log, such as a delay that could not be used.
        failure: the exception; None when it was raised in another process.
        where: the function's line that failed, when in another process; see `place`.
        counts: whether the call used up an attempt.
        attempts: the most attempts, when the call has set its own retry schedule; 0 for the
            function's.
        is_beyond: whether the function's own policy has no further attempt, so that the server
            would not deliver the message again by itself.
    """

    delay_s: float
    reason: str
    error_type: str = ""
    outage: Exception | None = None
    note: str = ""
    failure: Exception | None = field(default=None, compare=False, repr=False)
    where: str = field(default="", compare=False)
    counts: bool = True
    attempts: int = 0
    is_beyond: bool = False

    def place(self) -> str:
        """`file:line` of the function's own code that failed; empty when it is not known."""
        return self.where or (where_of(self.failure) if self.failure else "")


@dataclass(frozen=True, slots=True)
class Dead:
    """No attempt is left, or another attempt would not help.

    Attributes:
        attempts: the most attempts, when the call has set its own retry schedule; 0 for the
            function's.
    """

    code: str
    reason: str
    error_type: str = ""
    traceback: str = ""
    failure: Exception | None = field(default=None, compare=False, repr=False)
    where: str = field(default="", compare=False)
    attempts: int = 0

    def place(self) -> str:
        """`file:line` of the function's own code that failed; empty when it is not known."""
        return self.where or (where_of(self.failure) if self.failure else "")


Outcome = Done | Later | Dead

DONE = Done()


def policy_of(schedule: RetrySchedule) -> RetrySpec:
    """The retry policy of a call that has set its own schedule, whose bounds are checked."""
    return RetrySpec.model_construct(attempts=1, schedule=schedule.delays_s, jitter=schedule.jitter)


def retry_delay_s(policy: RetrySpec, attempt: int, chance: float) -> float:
    """Seconds to wait after the failed `attempt`.

    Args:
        policy: the function's.
        attempt: 1 for the first.
        chance: random number from 0 to 1, which spreads the delay by the policy's jitter.
    """
    if policy.schedule:
        base_s = policy.schedule[min(attempt, len(policy.schedule)) - 1]
    else:
        base_s = min(policy.cap, policy.delay * policy.factor ** min(attempt - 1, 64))
    return base_s * (1 + policy.jitter * (2 * chance - 1))
