"""Rates that hold over all processes that limit the same keys.

Each process decides alone, at once, by its own token buckets. Once a second it tells the others by
the database what it took, and charges itself what they took. So the rate holds in the long run:
what they gave out too much within a second is a debt, which all pay back. Only keys that may exceed
the rate all together are told, so a device that sends at a fraction of its rate costs nothing.

What N processes together give out for a key in T seconds is at most

    rate * T + N * (burst + rate * 1 s + 2)

and a quarter of the rate more for who can choose the process, and sends to most of them less than
a quarter of their parts. The second term is for what they give out before they hear of each other;
they all pay it back.

While the database is away each process limits alone. A backlog is judged by each process alone,
too: the processes then read messages of different times, and one would charge a device for the
messages of another hour.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from functions.domain.background_task import BackgroundTask
from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor
from functions.domain.rate_limiter import RateLimiter, Use

SUBJECT = "management.rates.share"
"""Endpoint for processes that have no connection to the database."""
MAX_USES = 2_000
"""The most keys that a process tells of at a time: those of which it took the most."""

_QUERIES = read_queries(Path(__file__).with_name("rate_sharing.sql"))
_EVERY_S = 1.0
_ALONE_EVERY_S = 5.0
_GONE_AFTER_S = 15.0
_LIVE_NS = 5_000_000_000
_TELL_AFTER = 3
_LONGEST_NS = 10**15
_LATEST_NS = 2**62


class KeyUse(BaseModel):
    """What a process took for a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
    added_ns: Annotated[int, Field(ge=0, le=_LONGEST_NS)]
    arrival_ns: Annotated[int, Field(ge=0, le=_LATEST_NS)]


class Uses(BaseModel):
    """What a process of a group took since it last told.

    Attributes:
        sharing: name of the group.
        sharer: the process.
        now_ns: what the process's clock shows, if the times are of that clock. None for times of a
            clock that the whole group reads, such as a stream's.
        uses: at most one for each key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sharing: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")]
    sharer: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    now_ns: Annotated[int, Field(ge=0, le=_LATEST_NS)] | None = None
    uses: Annotated[list[KeyUse], Field(max_length=MAX_USES)]


class Shared(BaseModel):
    """How many processes share, and the arrival times that all uses together make, by key."""

    sharers: int
    arrivals: dict[str, int]


class Store(Protocol):
    """Where processes meet."""

    async def share(self, uses: Uses) -> Shared:
        """Add the uses, and return what all took of the same keys; any exception: it is away."""


class PostgresStore:
    """The store of a process with a connection to the database."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def share(self, uses: Uses) -> Shared:
        """See `share_uses`."""
        return await share_uses(self._executor, uses)


async def share_uses(executor: Executor, uses: Uses) -> Shared:
    """Add the uses in the database, and return what all took of the same keys."""
    [heard] = await executor.fetch(_QUERIES["hear"], uses.sharing, uses.sharer, _GONE_AFTER_S)
    sharers: int = heard["sharers"]
    by_key = {use.key: use for use in uses.uses}
    if not by_key:
        return Shared(sharers=sharers, arrivals={})
    # Times of a process's own clock are kept as times of the database's: no two clocks agree, and
    # one that is ahead would make debts for everybody.
    ahead_ns = 0 if uses.now_ns is None else uses.now_ns - heard["now_ns"]
    rows = await executor.fetch(
        _QUERIES["settle"],
        uses.sharing,
        list(by_key),
        [use.added_ns for use in by_key.values()],
        [min(max(0, use.arrival_ns - ahead_ns), _LATEST_NS) for use in by_key.values()],
    )
    arrivals = {row["key"]: row["arrival_ns"] + ahead_ns for row in rows}
    return Shared(sharers=sharers, arrivals=arrivals)


async def forget_uses(executor: Executor) -> None:
    """Remove what nobody has used for an hour."""
    await executor.execute(_QUERIES["forget"])


class _Told(NamedTuple):
    """A use that is told, and whose it is."""

    use: Use
    limiter: str
    key: Any


class RateSharing(BackgroundTask):
    """Shares the limiters of one process with the others of its group.

    Args:
        sharing: name of the group: lower case and underscores.
        limiters: by the name that they have in every process. Their keys are text, or tuples of it.
        store: where the processes meet.
        log: says once when the store stays away, and when it is back.
        now_ns: the clock of the limiters' times.
        has_own_clock: whether the limiters' times are those of this process's clock. By default
            they are of a clock that all processes read, such as a stream's.
    """

    def __init__(
        self,
        sharing: str,
        limiters: Mapping[str, RateLimiter[Any]],
        store: Store,
        log: structlog.stdlib.BoundLogger,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        has_own_clock: bool = False,
    ) -> None:
        super().__init__(log)
        self._sharing = sharing
        self._sharer = secrets.token_hex(8)
        self._limiters = limiters
        self._store = store
        self._now_ns = now_ns
        self._has_own_clock = has_own_clock
        self._sharers = 1

    async def share(self) -> None:
        """Tell what was taken, and charge what the others took. Raises what the store raises."""
        told = self._collect()
        uses = [
            KeyUse.model_construct(
                key=name, added_ns=each.use.added_ns, arrival_ns=each.use.arrival_ns
            )
            for name, each in told.items()
        ]
        now_ns = self._now_ns() if self._has_own_clock else None
        shared = await self._store.share(
            Uses.model_construct(
                sharing=self._sharing, sharer=self._sharer, now_ns=now_ns, uses=uses
            )
        )
        self._sharers = max(1, shared.sharers)
        for limiter in self._limiters.values():
            limiter.share_with(self._sharers)
        self._charge(told, shared.arrivals)

    def _collect(self) -> dict[str, _Told]:
        found: list[_Told] = []
        for name, limiter in self._limiters.items():
            # What was taken before is dropped in any case: it belongs to another time.
            uses = limiter.uses(self._sharers)
            if self._now_ns() - limiter.latest_ns <= _LIVE_NS:
                found += (_Told(use, name, key) for key, use in uses.items())
        if len(found) > MAX_USES:
            found.sort(key=lambda each: each.use.added_ns, reverse=True)
            for left in found[MAX_USES:]:
                self._limiters[left.limiter].keep({left.key: left.use})
        return {_name(each.limiter, each.key): each for each in found[:MAX_USES]}

    def _charge(self, told: Mapping[str, _Told], arrivals: Mapping[str, int]) -> None:
        for name, limiter in self._limiters.items():
            mine = {
                each.key: (each.use, arrivals[text])
                for text, each in told.items()
                if each.limiter == name and text in arrivals
            }
            limiter.settle(
                {key: use for key, (use, _) in mine.items()},
                {key: arrival for key, (_, arrival) in mine.items()},
            )

    async def _run(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(_EVERY_S if self._sharers > 1 else _ALONE_EVERY_S)
            try:
                await self.share()
            except Exception as failure:  # noqa: BLE001 - this task must go on
                failures += 1
                if failures == _TELL_AFTER:
                    self._log.warning(
                        "Rates are not shared; each process limits alone",
                        sharing=self._sharing,
                        error_type=type(failure).__name__,
                    )
            else:
                if failures >= _TELL_AFTER:
                    self._log.info("Rates are shared again", sharing=self._sharing)
                failures = 0


def _name(limiter: str, key: Any) -> str:  # noqa: ANN401 - text or a tuple of it
    parts: Sequence[str] = (key,) if isinstance(key, str) else key
    return "/".join((limiter, *parts))


__all__ = [
    "MAX_USES",
    "SUBJECT",
    "KeyUse",
    "PostgresStore",
    "RateSharing",
    "Shared",
    "Store",
    "Uses",
    "forget_uses",
    "share_uses",
]
