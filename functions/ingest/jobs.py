"""Makes route jobs: one for each route whose filters accept a device's message."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson
import structlog

from functions.domain.envelope import Envelope
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.evaluation.values import Ask
from functions.domain.expressions import variables_of
from functions.domain.identifiers import job_id
from functions.domain.job_bounds import JobBounds, JobLimits
from functions.domain.outbox import NewJob
from functions.domain.registry import RegisteredRoute
from functions.domain.route_decisions import TAKEN, Decision, decide, job_subject
from functions.ingest.undecided import UndecidedFilters
from runtime import Message

_TOKEN = "provision_token"  # noqa: S105 - a field's name
_MAX_COUNTED = 10_000
_WARN_EVERY_S = 60.0
_ROUTES_AT_A_TIME = 2000


class Candidate(NamedTuple):
    """An accepted message, and the routes of its topic."""

    message: Message
    envelope: Envelope
    stored_at: datetime
    routes: Sequence[RegisteredRoute]


class MadeJobs(NamedTuple):
    """The jobs of some messages, and the messages for which the making of jobs has failed."""

    jobs: list[tuple[Message, NewJob]]
    failed: list[tuple[Message, Exception]]


class JobMaker:
    """Matches messages with routes. A filter that fails on a message does not accept it.

    Args:
        log: gets warnings of filters that fail.
        evaluator: evaluates filters and order keys.
        bounds: judges each job.

    Attributes:
        bounds: as given.
        undecided: filters that were not evaluated.
        failures: how often each route's filter failed; a missing field is not a failure.
    """

    def __init__(
        self,
        log: structlog.stdlib.BoundLogger,
        evaluator: Evaluator,
        bounds: JobBounds | None = None,
    ) -> None:
        self.bounds = bounds or JobBounds(JobLimits(), log)
        self.undecided = UndecidedFilters(log)
        self.failures: dict[str, int] = {}
        self._evaluator = evaluator
        self._log = log
        self._warned_at_s: dict[str, float] = {}

    async def make(self, candidates: Sequence[Candidate]) -> MadeJobs:
        """A job for each route that accepts a message; the same jobs on every delivery.

        Other tasks run in between: after some thousand routes, and while filters are evaluated.
        """
        made = MadeJobs([], [])
        for part in _in_parts(candidates):
            prepared = [(candidate, _variables(candidate.envelope)) for candidate in part]
            asks = [
                Ask(variables["tenant_id"], variables, route.steps, len(candidate.message.data))
                for candidate, variables in prepared
                for route in candidate.routes
                if route.steps
            ]
            answers = iter(await self._evaluator.evaluate(asks))
            for candidate, variables in prepared:
                # All of a message's answers, also of one whose jobs fail.
                decisions = [
                    decide(route.steps, next(answers)) if route.steps else TAKEN
                    for route in candidate.routes
                ]
                try:
                    jobs = self.make_of(candidate, variables, decisions)
                except Exception as failure:  # noqa: BLE001 - one message must not fail its batch
                    made.failed.append((candidate.message, failure))
                else:
                    made.jobs.extend((candidate.message, job) for job in jobs)
            await asyncio.sleep(0)
        return made

    def make_of(
        self, candidate: Candidate, variables: dict[str, Any], decisions: Sequence[Decision]
    ) -> list[NewJob]:
        """The jobs of one message."""
        jobs: list[NewJob] = []
        for route, decision in zip(candidate.routes, decisions, strict=True):
            if decision.verdict == "taken":
                job = _job(candidate, variables, route, decision.key)
                jobs.append(self.bounds.bounded(job, len(jobs)))
            elif decision.verdict == "undecided":
                tenant_id = variables["tenant_id"]
                self.undecided.add(tenant_id, route.route_id, candidate.stored_at, decision)
            elif decision.code == "FILTER_FAILED":
                self._count(route.route_id, candidate.message.received_at_s, decision.reason)
        return jobs

    def _count(self, route_id: str, now_s: float, reason: str) -> None:
        if len(self.failures) >= _MAX_COUNTED:
            self.failures.clear()
            self._warned_at_s.clear()
        self.failures[route_id] = self.failures.get(route_id, 0) + 1
        if now_s - self._warned_at_s.get(route_id, -_WARN_EVERY_S) >= _WARN_EVERY_S:
            self._warned_at_s[route_id] = now_s
            self._log.warning(
                "A route's payload filter failed, so the route did not get the message",
                route_id=route_id,
                reason=reason,
                failures=self.failures[route_id],
            )


def _in_parts(candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    """The candidates in parts of about so many routes that a part takes some milliseconds."""
    begin = routes = 0
    for place, candidate in enumerate(candidates):
        routes += len(candidate.routes)
        if routes >= _ROUTES_AT_A_TIME:
            yield candidates[begin : place + 1]
            begin, routes = place + 1, 0
    if begin < len(candidates):
        yield candidates[begin:]


def _variables(envelope: Envelope) -> dict[str, Any]:
    topic, payload = envelope.topic, envelope.payload
    if _TOKEN in payload:
        payload = {key: value for key, value in payload.items() if key != _TOKEN}
    return variables_of(
        payload,
        topic=topic.text,
        tenant_id=topic.tenant_id,
        device_id=topic.device_id,
        msg_type=topic.msg_type,
    )


def _job(
    candidate: Candidate, variables: dict[str, Any], route: RegisteredRoute, key: str
) -> NewJob:
    id_of_job = job_id(candidate.message.origin, route.route_id)
    tenant_id, kind = variables["tenant_id"], route.destination_type
    job = {
        "job_id": id_of_job,
        "route_id": route.route_id,
        "tenant_id": tenant_id,
        "device_id": variables["device_id"],
        "topic": variables["topic"],
        "msg_type": variables["msg_type"],
        "payload": variables["payload"],
        "stored_at": candidate.stored_at,
    }
    subject = job_subject(tenant_id, kind, route.order_key, variables, key)
    content = orjson.dumps(job)
    return NewJob(tenant_id, id_of_job, route.route_id, kind, content, None, subject)


__all__ = ["Candidate", "JobMaker", "MadeJobs"]
