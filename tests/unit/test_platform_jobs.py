"""Jobs of events and notices: what the log says of filters that were not evaluated."""

import structlog
from structlog.testing import capture_logs

from functions.domain.job_bounds import JobBounds, JobLimits
from functions.domain.route_decisions import Decision
from functions.route_delivery.job import Job
from functions.route_delivery.jobs_again import TargetRoute
from functions.route_delivery.platform_jobs import JobSource, PlatformJobs
from runtime import Context
from runtime.context import Scope
from runtime.local.recorded_effects import RecordedEffects
from tests.support.evaluation import EvaluatorHere


def no_job(route_id: str) -> Job:
    raise AssertionError(route_id)


def test_a_filter_that_is_stopped_at_every_event_makes_a_line_a_minute() -> None:
    log = structlog.stdlib.get_logger()
    jobs = PlatformJobs(EvaluatorHere(), JobBounds(JobLimits(), log))
    scope = Scope("route_device_events", None, RecordedEffects(), {}, log, state=jobs)
    context: Context[PlatformJobs] = Context(scope)
    source = JobSource([TargetRoute("r1", "webhook"), TargetRoute("r2", "webhook")], no_job, 100)
    stopped = Decision("undecided", "FILTER_STOPPED", "the filter took too long")
    with capture_logs() as lines:
        for _ in range(50):
            assert jobs._jobs_of(source, [stopped, stopped], context) == []
    assert sorted(line["route_id"] for line in lines) == ["r1", "r2"]
