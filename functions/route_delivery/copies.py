"""Decides which of several stored messages is a job.

After an outage, a job may be in its stream twice: the hand-over could not know that the first
publish had been stored, and the stream had forgotten its message id. The second message says that
it may be a repeat. It becomes the job if no attempt was made at the first one; else it is void.
"""

from functions.domain.outbox import REPEATED_HEADER
from functions.route_delivery.job import Job
from functions.route_delivery.journal import FoundRoute, Journal
from runtime import Event, Retry

REPLAY_HEADER = "Delivery-Replay"
"""Header of a job that a replay sent: the replay's id."""
_MAX_WAIT_S = 3600.0
_DEFAULT_WAIT_S = 30.0


async def is_void_copy(event: Event[Job], route: FoundRoute | None, journal: Journal) -> bool:
    """Whether another stored message is the event's job.

    Raises:
        Retry: the event is the job from now on, but an attempt at another copy may be under way.
            It has ended when the event comes again, and the job is delivered then, or this is its
            first attempt.
    """
    if route is None:
        return False
    replay_id = event.headers.get(REPLAY_HEADER)
    if replay_id is not None and replay_id == route.replay_id:
        return False
    if route.only_copy is not None:
        return route.only_copy != event.message.origin
    if (repeated := event.headers.get(REPEATED_HEADER)) is None:
        return False
    job = event.data
    if not await journal.claim(job.tenant_id, job.job_id, event.message.origin):
        return True
    raise Retry("the job may be in its stream twice", delay_s=_read_wait_s(repeated), counts=False)


def _read_wait_s(text: str) -> float:
    """The seconds that a header asks for, within bounds: anybody may publish a header."""
    try:
        wait_s = float(text)
    except ValueError:
        return _DEFAULT_WAIT_S
    return min(wait_s, _MAX_WAIT_S) if wait_s >= 0 else _DEFAULT_WAIT_S


__all__ = ["REPLAY_HEADER", "is_void_copy"]
