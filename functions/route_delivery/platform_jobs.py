"""Jobs of what the platform tells its tenants: events of devices, and notices.

They are bounded as those of devices' messages are: beyond a tenant's bytes of waiting jobs a new
one is refused. It leaves a dead letter while the tenant's share of these allows it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.evaluation.values import Ask
from functions.domain.job_bounds import JobBounds, JobLimits
from functions.domain.notices import add_notice
from functions.domain.outbox import NewJob, add_jobs
from functions.domain.rate_limiter import RateLimiter
from functions.domain.route_decisions import LATER, TAKEN, Decision, decide
from functions.route_delivery.job import Job
from functions.route_delivery.jobs_again import TargetRoute, new_job, variables_of_message
from runtime import Context, Retry

MAX_ROUTES = 100
"""How many routes of a tenant count, the oldest first, and so the most jobs of one event."""


class PlatformJobSettings(BaseModel):
    """Bounds on the jobs of a tenant.

    Attributes:
        max_waiting_bytes: of those that wait; beyond it a job is refused.
        max_given_up_bytes: of those that were refused or given up; beyond it a refused job leaves
            no dead letter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_waiting_bytes: Annotated[int, Field(ge=1_000, le=10**15)] = 256_000_000
    max_given_up_bytes: Annotated[int, Field(ge=0, le=10**15)] = 64_000_000

    def limits(self) -> JobLimits:
        """The bounds in their own form."""
        return JobLimits(MAX_ROUTES, self.max_waiting_bytes, self.max_given_up_bytes)


class JobSource(NamedTuple):
    """An event or a notice, of which jobs are made.

    Attributes:
        routes: those whose topic filters take it.
        job_for: its job for the route of this id.
        size_bytes: about the size of its content.
    """

    routes: Sequence[TargetRoute]
    job_for: Callable[[str], Job]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PlatformJobs:
    """Makes the jobs.

    Attributes:
        evaluator: of the routes' filters and order keys.
        bounds: judges each job.
        lines: how often the log says of a route that its filter was not evaluated.
    """

    evaluator: Evaluator
    bounds: JobBounds
    lines: RateLimiter[str] = field(default_factory=lambda: RateLimiter(1 / 60, 1, max_keys=10_000))

    async def make(
        self, sources: Sequence[JobSource], ctx: Context["PlatformJobs"]
    ) -> list[list[NewJob] | Retry]:
        """The jobs of each source; a `Retry` where the tenant's filters have used up their time.

        All filters are asked together: one after the other, the hundred routes of a tenant took
        20 ms of each event, for which the events of all tenants waited.
        """
        asks: list[Ask] = []
        for each in sources:
            if any(route.steps for route in each.routes):
                # The same for all routes: a job differs by its route alone.
                job = each.job_for(each.routes[0].route_id)
                variables = variables_of_message(job)
                asks += [
                    Ask(job.tenant_id, variables, route.steps, each.size_bytes)
                    for route in each.routes
                    if route.steps
                ]
        answers = iter(await self.evaluator.evaluate(asks))
        made: list[list[NewJob] | Retry] = []
        for each in sources:
            decisions = [
                decide(route.steps, next(answers)) if route.steps else TAKEN
                for route in each.routes
            ]
            made.append(self._jobs_of(each, decisions, ctx))
        return made

    async def add(self, jobs: Sequence[NewJob], ctx: Context["PlatformJobs"]) -> None:
        """Commit jobs, the ones beyond their tenant's bounds as refused, and tell the tenant."""
        if not jobs:
            return
        await self.bounds.refresh(ctx.postgres, {job.tenant_id for job in jobs})
        bounded = [self.bounds.bounded(job) for job in jobs]
        notices = self.bounds.notices(bounded)
        async with ctx.postgres.acquire() as connection, connection.transaction():
            await add_jobs(connection, bounded)
            for notice in notices:
                await add_notice(connection, notice)
        self.bounds.told(notices)

    def _jobs_of(
        self, source: JobSource, decisions: Sequence[Decision], ctx: Context["PlatformJobs"]
    ) -> list[NewJob] | Retry:
        for decision in decisions:
            if decision.code in LATER:
                return Retry(decision.reason)
        jobs = []
        for route, decision in zip(source.routes, decisions, strict=True):
            if decision.verdict == "undecided" and self._may_say(route.route_id):
                text = "A route's filter was not evaluated, so the route got no job"
                ctx.log.warning(text, route_id=route.route_id, code=decision.code)
            if decision.verdict == "taken":
                jobs.append(new_job(source.job_for(route.route_id), route, decision.key))
        return jobs

    def _may_say(self, route_id: str) -> bool:
        return self.lines.take(route_id, time.monotonic_ns())


async def start(ctx: Context[PlatformJobs]) -> PlatformJobs:
    """What evaluates the filters of the routes, and judges their jobs."""
    settings: PlatformJobSettings = ctx.settings
    return PlatformJobs(Evaluator(ctx.log), JobBounds(settings.limits(), ctx.log))


async def stop(ctx: Context[PlatformJobs]) -> None:
    """End the process of the filters."""
    await ctx.state.evaluator.close()


__all__ = [
    "MAX_ROUTES",
    "JobSource",
    "PlatformJobSettings",
    "PlatformJobs",
    "start",
    "stop",
]
