"""Replays on a real server and database: what is sent again, once, in which order, and how far."""

import base64
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
import structlog

from functions.domain.evaluation.values import Answer, Ask, Outcome
from functions.management import replays as endpoints
from functions.route_delivery.delivery import REPLAY_HEADER
from functions.route_delivery.job import Job
from functions.route_delivery.replays import ReplaySettings, run_replays
from runtime import Context, PublishFailed
from runtime.broker.connection import Broker
from runtime.context import Scope
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller
from tests.support.evaluation import EvaluatorHere

STREAMS = {"ROUTES": "routes.>", "TELEMETRY": "telemetry.>"}
NOW = datetime.now(UTC)
SINCE = NOW - timedelta(days=2)


@dataclass
class Replays:
    """A route of a tenant, and the functions that send its jobs again."""

    broker: Broker
    pool: "asyncpg.Pool[asyncpg.Record]"
    scope: Scope
    api: Caller
    route_id: str

    async def add_job(
        self, number: int, *, status: str = "dead", content: bool = True, **columns: Any
    ) -> str:
        """A job that was made some minutes ago, the highest number first."""
        made_at = NOW - timedelta(minutes=number)
        job = Job(
            job_id=f"TELEMETRY-{number}-{int(made_at.timestamp() * 1e6)}123-{self.route_id}",
            route_id=self.route_id,
            tenant_id="test",
            topic="tenant/test/device/d1/telemetry",
            device_id="d1",
            msg_type="telemetry",
            payload={"metrics": {"n": number}},
            stored_at=made_at,
        )
        await self.pool.execute(
            "INSERT INTO delivery_jobs (tenant_id, job_id, route_id, destination_type, status,"
            " attempts, first_attempt_at, last_attempt_at, content)"
            " VALUES ('test', $1, $2, 'webhook', $3, 1, $4, $5, $6)",
            *(job.job_id, self.route_id, status, made_at, columns.pop("tried_at", made_at)),
            job.model_dump_json().encode() if content else None,
        )
        return job.job_id

    async def add_message(self, n: int, device: str = "d1", *, row: bool = True) -> datetime:
        """A message in the stream, and its row as ingest writes it."""
        body = {"site_id": "s1", "provision_token": "t0ken", "metrics": {"n": n}, "extra": "kept"}
        stored = await self.broker.publish(
            f"telemetry.test.{device}", orjson.dumps(body), msg_id=None
        )
        message = (await self.message("TELEMETRY", stored.sequence))["time"]
        time = datetime.fromisoformat(message[:26] + "+00:00")
        if row:
            await self.pool.execute(
                "INSERT INTO telemetry VALUES ($1, 'test', $2, 's1', 'telemetry', $3, $4)",
                *(time, device, stored.sequence, orjson.dumps({"n": n}).decode()),
            )
        return time

    async def ask(self, **fields: Any) -> endpoints.Replay:
        wanted = {"tenant_id": "test", "route_id": self.route_id, "since": SINCE, **fields}
        return await self.api.ask(endpoints.create_replay, **wanted)

    async def run(self) -> None:
        """One run of the scheduled function, as if the time of the next one had come."""
        await self.pool.execute("UPDATE delivery_replays SET run_at = now()")
        await run_replays(Context(self.scope))

    async def run_to_the_end(self, replay_id: UUID) -> endpoints.Replay:
        for _ in range(50):
            await self.run()
            found = await self.get(replay_id)
            if found.status in {"done", "cancelled"}:
                return found
        raise AssertionError("the replay does not end")

    async def get(self, replay_id: UUID) -> endpoints.Replay:
        return await self.api.ask(endpoints.get_replay, tenant_id="test", replay_id=replay_id)

    async def message(self, stream: str, sequence: int) -> dict[str, Any]:
        found = await self.broker.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence})
        message: dict[str, Any] = found["message"]
        return message

    async def sent(self) -> list[tuple[str, dict[str, Any], str]]:
        """Subject, job and headers of all that was sent again."""
        state = (await self.broker.api("STREAM.INFO.ROUTES", None))["state"]
        found = [await self.message("ROUTES", n) for n in range(1, state["last_seq"] + 1)]
        return [
            (
                one["subject"],
                orjson.loads(base64.b64decode(one["data"])),
                base64.b64decode(one.get("hdrs", "")).decode(),
            )
            for one in found
        ]

    async def numbers(self) -> list[int]:
        return [job["payload"]["metrics"]["n"] for _, job, _ in await self.sent()]

    async def outbox(self) -> list[dict[str, Any]]:
        """The jobs that were made of messages without one."""
        rows = await self.pool.fetch(
            "SELECT content FROM delivery_jobs JOIN delivery_outbox ON msg_id = job_id"
            " ORDER BY outbox_id"
        )
        return [orjson.loads(row["content"]) for row in rows]

    async def statuses(self) -> dict[str, int]:
        rows = await self.pool.fetch("SELECT status, count(*) FROM delivery_jobs GROUP BY status")
        return {row["status"]: row["count"] for row in rows}


@pytest.fixture
async def replays(broker: Broker, postgres_dsn: str) -> AsyncIterator[Replays]:
    pool = await open_pool(postgres_dsn, max_size=4)
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ('test'), ('other')")
    route_id = await pool.fetchval(
        "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type)"
        " VALUES ('test', 'hook', 'tenant/test/device/+/telemetry', 'webhook') RETURNING id::text"
    )
    for name, subject in STREAMS.items():
        await broker.api(f"STREAM.CREATE.{name}", {"name": name, "subjects": [subject]})
    log = structlog.get_logger()
    scope = Scope("run_replays", ReplaySettings(), broker, {"postgres": pool}, log)
    scope.state = EvaluatorHere()
    yield Replays(broker, pool, scope, Caller(pool), route_id)
    for name in STREAMS:
        await broker.api(f"STREAM.DELETE.{name}", None)
    await pool.close()


async def test_what_failed_was_refused_or_given_up_is_sent_again_in_order_and_once(
    replays: Replays,
) -> None:
    for number, status in ((3, "failing"), (2, "dead"), (1, "refused")):
        await replays.add_job(number, status=status)
    for number, status in ((4, "delivered"), (6, "waiting")):
        await replays.add_job(number, status=status)
    replay = await replays.ask(kind="failed")
    assert (replay.found, replay.sent, replay.status) == (3, 0, "running")
    done = await replays.run_to_the_end(replay.replay_id)
    assert (done.sent, done.status, done.lost) == (3, "done", 0)
    assert await replays.numbers() == [3, 2, 1]
    subject, job, headers = (await replays.sent())[0]
    assert subject == "routes.test.webhook"
    assert f"{REPLAY_HEADER}: {replay.replay_id}" in headers
    assert job["job_id"].endswith(replays.route_id)
    assert await replays.statuses() == {"waiting": 4, "delivered": 1}


@pytest.mark.parametrize("status", ["dead", "held"])
async def test_jobs_that_were_made_together_are_sent_in_the_order_of_their_messages(
    replays: Replays, status: str
) -> None:
    replays.scope = replace(replays.scope, settings=ReplaySettings(released=2))
    for number in (10, 9, 100, 8, 11):
        await replays.add_job(number, status=status)
    # Ingest makes the jobs of a batch in one transaction.
    await replays.pool.execute("UPDATE delivery_jobs SET first_attempt_at = $1", NOW)
    if status == "dead":
        await replays.run_to_the_end((await replays.ask(kind="failed", rate_per_s=1)).replay_id)
    for _ in range(3):
        await replays.run()
    assert await replays.numbers() == [8, 9, 10, 11, 100]


async def test_a_range_of_time_selects_by_the_last_attempt(replays: Replays) -> None:
    await replays.add_job(1, tried_at=NOW - timedelta(hours=3))
    await replays.add_job(2, tried_at=NOW - timedelta(hours=2))
    await replays.add_job(3, tried_at=NOW - timedelta(hours=1))
    replay = await replays.ask(
        kind="failed",
        since=NOW - timedelta(hours=2, minutes=30),
        until=NOW - timedelta(hours=1, minutes=30),
    )
    await replays.run_to_the_end(replay.replay_id)
    assert await replays.numbers() == [2]


async def test_a_job_that_fails_again_is_not_sent_a_second_time_by_the_same_replay(
    replays: Replays,
) -> None:
    await replays.add_job(1)
    replay = await replays.ask(kind="failed", rate_per_s=1)
    await replays.run()
    await replays.pool.execute(
        "UPDATE delivery_jobs SET status = 'failing', last_attempt_at = now()"
    )
    assert (await replays.run_to_the_end(replay.replay_id)).sent == 1
    assert await replays.numbers() == [1]


async def test_a_replay_keeps_to_its_rate_and_can_be_cancelled(replays: Replays) -> None:
    for number in range(9, 0, -1):
        await replays.add_job(number)
    replay = await replays.ask(kind="failed", rate_per_s=1)
    await replays.run()
    await replays.run()
    assert await replays.numbers() == [9, 8, 7, 6]
    names = {"tenant_id": "test", "replay_id": replay.replay_id}
    assert (await replays.api.ask(endpoints.cancel_replay, **names)).status == "cancelling"
    cancelled = await replays.run_to_the_end(replay.replay_id)
    assert (cancelled.status, cancelled.sent) == ("cancelled", 4)
    assert (await replays.api.ask(endpoints.cancel_replay, **names)).status == "cancelled"
    assert await replays.statuses() == {"waiting": 4, "dead": 5}


async def test_a_replay_waits_while_the_tenant_has_as_much_waiting_as_it_may(
    replays: Replays,
) -> None:
    for number in range(3, 0, -1):
        await replays.add_job(number)
    await replays.add_job(9, status="failing")
    replays.scope.settings = ReplaySettings(max_waiting_bytes=1000)
    await replays.pool.execute(
        "UPDATE delivery_jobs SET size_bytes = 1000 WHERE status = 'failing'"
    )
    replay = await replays.ask(kind="failed", since=NOW - timedelta(minutes=5))
    await replays.run()
    await replays.run()
    assert await replays.numbers() == []
    ended = "UPDATE delivery_jobs SET status = 'delivered' WHERE status = 'failing'"
    await replays.pool.execute(ended)
    done = await replays.run_to_the_end(replay.replay_id)
    assert (done.status, done.sent) == ("done", 3)
    assert await replays.numbers() == [3, 2, 1]


async def test_a_job_that_no_server_takes_holds_up_no_other_and_no_other_replay(
    replays: Replays,
) -> None:
    for number in (8, 3):
        await replays.add_job(number)
    too_large = await replays.add_job(9)
    content = await replays.pool.fetchval(
        "SELECT content FROM delivery_jobs WHERE job_id = $1", too_large
    )
    job = orjson.loads(content)
    job["payload"]["filler"] = ""
    # As large as the server allows, without the header that a replay adds.
    job["payload"]["filler"] = "x" * (replays.broker.max_payload_bytes - len(orjson.dumps(job)))
    await replays.pool.execute(
        "UPDATE delivery_jobs SET content = $2 WHERE job_id = $1", too_large, orjson.dumps(job)
    )
    large = await replays.ask(
        kind="failed", since=NOW - timedelta(minutes=10), until=NOW - timedelta(minutes=5)
    )
    other = await replays.ask(kind="failed", since=NOW - timedelta(minutes=5))
    done = await replays.run_to_the_end(large.replay_id)
    assert (done.sent, done.lost) == (1, 1)
    done = await replays.run_to_the_end(other.replay_id)
    assert (done.sent, done.lost) == (1, 0)
    assert sorted(await replays.numbers()) == [3, 8]
    assert await replays.statuses() == {"waiting": 2, "dead": 1}


@pytest.mark.parametrize(("failing", "sent"), [(0, [3]), (1, [9])])
async def test_a_failed_step_holds_up_no_other_replay(
    replays: Replays, failing: int, sent: list[int]
) -> None:
    await replays.add_job(9)
    await replays.add_job(3)
    asked = [
        await replays.ask(
            kind="failed",
            since=NOW - timedelta(minutes=minutes),
            until=NOW - timedelta(minutes=minutes - 5),
        )
        for minutes in (10, 5)
    ]
    # A cursor that nobody could have written fails each step of one of them.
    await replays.pool.execute(
        'UPDATE delivery_replays SET cursor = \'["never", "x"]\' WHERE replay_id = $1',
        asked[failing].replay_id,
    )
    for _ in range(2):
        with pytest.raises(ValueError, match="never"):
            await replays.run()
    assert await replays.numbers() == sent


async def test_a_step_that_was_interrupted_is_made_again_and_sends_nothing_twice(
    replays: Replays,
) -> None:
    for number in range(4, 0, -1):
        await replays.add_job(number)
    replay = await replays.ask(kind="failed", rate_per_s=1)
    await replays.run()
    # The host died before it noted the step.
    await replays.pool.execute("UPDATE delivery_replays SET cursor = NULL, sent = 0")
    done = await replays.run_to_the_end(replay.replay_id)
    assert (done.sent, await replays.numbers()) == (4, [4, 3, 2, 1])


async def test_a_stream_that_takes_nothing_delays_a_replay(replays: Replays) -> None:
    await replays.add_job(1)
    replay = await replays.ask(kind="failed")
    await replays.broker.api("STREAM.DELETE.ROUTES", None)
    with pytest.raises(PublishFailed):
        await replays.run()
    assert (await replays.get(replay.replay_id)).sent == 0
    await replays.broker.api("STREAM.CREATE.ROUTES", {"name": "ROUTES", "subjects": ["routes.>"]})
    assert (await replays.run_to_the_end(replay.replay_id)).sent == 1


async def test_accepted_messages_without_a_job_get_one_if_the_route_accepts_them(
    replays: Replays,
) -> None:
    await replays.pool.execute("UPDATE message_routes SET payload_filter = 'payload.metrics.n > 1'")
    for number in (1, 2, 3):
        await replays.add_message(number)
    await replays.add_message(4, "d2")
    [known] = await replays.pool.fetch("SELECT time, seq FROM telemetry WHERE seq = 3")
    us = int(known["time"].timestamp() * 1e6)
    await replays.pool.execute(
        "INSERT INTO delivery_jobs (tenant_id, job_id, route_id, destination_type, status,"
        " attempts, content) VALUES ('test', $1, $2, 'webhook', 'delivered', 1, NULL)",
        f"TELEMETRY-3-{us}999-{replays.route_id}",
        replays.route_id,
    )
    replay = await replays.ask(kind="missing")
    done = await replays.run_to_the_end(replay.replay_id)
    assert (done.examined, done.sent, done.status) == (4, 2, "done")
    jobs = await replays.outbox()
    assert [(job["device_id"], job["payload"]["metrics"]["n"]) for job in jobs] == [
        ("d1", 2),
        ("d2", 4),
    ]
    # The whole message, as ingest hands it to routes, under the id that ingest gives it.
    assert jobs[0]["payload"]["extra"] == "kept"
    assert "t0ken" not in str(jobs)
    stored = await replays.message("TELEMETRY", 2)
    assert jobs[0]["job_id"].startswith(f"TELEMETRY-2-{us // 10**9}")
    assert stored["time"].partition(".")[2][:6] in jobs[0]["job_id"]


class Scarce(EvaluatorHere):
    """Evaluates two asks of each call, and has no time for the others; one is always stopped."""

    async def evaluate(self, asks: Sequence[Ask]) -> list[Answer]:
        found = await super().evaluate(asks)
        found = [
            Answer(Outcome.STOPPED, reason="slow") if ask.variables["metrics"]["n"] == 2 else answer
            for ask, answer in zip(asks, found, strict=True)
        ]
        return [*found[:2], *[Answer(Outcome.OVER_BUDGET, reason="none left")] * len(found[2:])]


async def test_a_replay_waits_for_filters_and_makes_the_jobs_of_all_that_were_undecided(
    replays: Replays,
) -> None:
    replays.scope.state = Scarce()
    await replays.pool.execute("UPDATE message_routes SET payload_filter = 'metrics.n > 1'")
    for number in range(1, 8):
        await replays.add_message(number)
    replay = await replays.ask(kind="missing")
    await replays.run()
    done = await replays.run_to_the_end(replay.replay_id)
    # The first is not accepted, the second was stopped.
    assert (done.examined, done.sent, done.lost, done.status) == (7, 5, 1, "done")
    assert [job["payload"]["metrics"]["n"] for job in await replays.outbox()] == [3, 4, 5, 6, 7]


async def test_a_replay_that_gets_no_time_at_all_goes_on_another_time(replays: Replays) -> None:
    class Busy(EvaluatorHere):
        async def evaluate(self, asks: Sequence[Ask]) -> list[Answer]:
            return [Answer(Outcome.OVER_BUDGET, reason="none left") for _ in asks]

    replays.scope.state = Busy()
    await replays.pool.execute("UPDATE message_routes SET payload_filter = 'metrics.n > 0'")
    await replays.add_message(1)
    replay = await replays.ask(kind="missing")
    await replays.run()
    waiting = await replays.get(replay.replay_id)
    assert (waiting.status, waiting.examined, waiting.lost) == ("running", 0, 0)
    replays.scope.state = EvaluatorHere()
    assert (await replays.run_to_the_end(replay.replay_id)).sent == 1


async def test_a_message_that_the_stream_has_no_more_is_made_of_its_row(replays: Replays) -> None:
    await replays.add_message(7)
    await replays.broker.api("STREAM.PURGE.TELEMETRY", None)
    replay = await replays.ask(kind="missing")
    assert (await replays.run_to_the_end(replay.replay_id)).sent == 1
    [job] = await replays.outbox()
    assert job["payload"] == {"site_id": "s1", "metrics": {"n": 7}}
    again = await replays.ask(kind="missing")
    assert (await replays.run_to_the_end(again.replay_id)).sent == 0


async def test_a_row_that_was_imported_is_no_message_that_a_route_missed(replays: Replays) -> None:
    await replays.add_message(1)
    await replays.pool.execute(
        "INSERT INTO telemetry SELECT time, tenant_id, device_id, site_id, msg_type, -5, metrics"
        " FROM telemetry"
    )
    replay = await replays.ask(kind="missing")
    done = await replays.run_to_the_end(replay.replay_id)
    assert (done.examined, done.sent) == (1, 1)


async def test_recovering_enables_a_route_that_was_disabled_and_sends_all_that_it_missed(
    replays: Replays,
) -> None:
    await replays.pool.execute(
        "UPDATE message_routes SET is_enabled = FALSE, disabled_reason = 'ENDPOINT_FAILING'"
    )
    await replays.add_job(1)
    await replays.add_message(2)
    replay = await replays.ask()
    done = await replays.run_to_the_end(replay.replay_id)
    assert (replay.kind, done.sent) == ("recover", 2)
    assert await replays.pool.fetchval("SELECT is_enabled FROM message_routes")
    assert (await replays.numbers(), len(await replays.outbox())) == ([1], 1)


async def test_jobs_go_where_the_route_says_today(replays: Replays) -> None:
    await replays.add_job(1)
    await replays.pool.execute(
        "UPDATE message_routes SET destination_type = 'slack', order_by = 'device_id'"
    )
    replay = await replays.ask(kind="failed")
    await replays.run_to_the_end(replay.replay_id)
    [(subject, _, _)] = await replays.sent()
    assert subject.startswith("routes.test.slack.")


async def test_one_job_is_sent_again_even_if_it_was_delivered(replays: Replays) -> None:
    time = await replays.add_message(5)
    stored = await replays.message("TELEMETRY", 1)
    fraction = stored["time"].removesuffix("Z").partition(".")[2].ljust(9, "0")
    job_id = f"TELEMETRY-1-{int(time.timestamp())}{fraction}-{replays.route_id}"
    await replays.pool.execute(
        "INSERT INTO delivery_jobs (tenant_id, job_id, route_id, destination_type, status,"
        " attempts, delivered_at) VALUES ('test', $1, $2, 'webhook', 'delivered', 1, now())",
        job_id,
        replays.route_id,
    )
    asked = {"tenant_id": "test", "job_id": job_id, "replay_id": uuid4()}
    replay = await replays.api.ask(endpoints.replay_job, **asked)
    assert await replays.api.ask(endpoints.replay_job, **asked) == replay
    assert (await replays.run_to_the_end(replay.replay_id)).sent == 1
    [(_, job, _)] = await replays.sent()
    assert (job["job_id"], job["payload"]["extra"]) == (job_id, "kept")
    refusal = await replays.api.refuse(endpoints.replay_job, tenant_id="other", job_id=job_id)
    assert refusal == ("JOB_NOT_FOUND", 404)


async def test_a_job_whose_message_is_gone_is_counted_as_lost(replays: Replays) -> None:
    job_id = await replays.add_job(1, status="delivered", content=False)
    replay = await replays.api.ask(endpoints.replay_job, tenant_id="test", job_id=job_id)
    done = await replays.run_to_the_end(replay.replay_id)
    assert (done.sent, done.lost) == (0, 1)
    assert await replays.statuses() == {"dead": 1}


async def test_the_same_request_is_one_replay_and_another_one_is_a_conflict(
    replays: Replays,
) -> None:
    replay_id = uuid4()
    first = await replays.ask(replay_id=replay_id)
    assert await replays.ask(replay_id=replay_id) == first
    other = {"tenant_id": "test", "route_id": replays.route_id, "replay_id": replay_id}
    refusal = await replays.api.refuse(endpoints.create_replay, **other, since=NOW)
    assert refusal == ("REPLAY_EXISTS", 409)
    page = await replays.api.ask(
        endpoints.list_replays, tenant_id="test", route_id=replays.route_id
    )
    assert page.items == [first]
    second = await replays.ask()
    newest = await replays.api.ask(endpoints.list_replays, tenant_id="test", limit=1)
    oldest = await replays.api.ask(
        endpoints.list_replays, tenant_id="test", limit=1, cursor=newest.next_cursor
    )
    assert [*newest.items, *oldest.items] == [second, first]
    foreign = {"tenant_id": "other", "replay_id": replay_id}
    assert await replays.api.refuse(endpoints.get_replay, **foreign) == ("REPLAY_NOT_FOUND", 404)


async def test_replays_are_bounded_in_time_and_number(replays: Replays) -> None:
    wanted = {"tenant_id": "test", "route_id": replays.route_id}
    early = NOW - timedelta(days=endpoints.MAX_DAYS, minutes=1)
    refuse = replays.api.refuse
    assert await refuse(endpoints.create_replay, **wanted, since=early) == ("SINCE_TOO_EARLY", 422)
    empty = await refuse(endpoints.create_replay, **wanted, since=NOW, until=SINCE)
    assert empty == ("RANGE_INVALID", 422)
    unknown = {"tenant_id": "test", "route_id": str(uuid4())}
    assert await refuse(endpoints.create_replay, **unknown, since=NOW) == ("ROUTE_NOT_FOUND", 404)
    for _ in range(endpoints.MAX_RUNNING):
        await replays.ask()
    assert await refuse(endpoints.create_replay, **wanted, since=NOW) == ("TOO_MANY_REPLAYS", 429)


async def test_a_route_that_a_person_stopped_is_not_recovered(replays: Replays) -> None:
    wanted = {"tenant_id": "test", "route_id": replays.route_id, "since": NOW}
    for change in ("is_enabled = FALSE", "is_enabled = TRUE, paused_at = now()"):
        await replays.pool.execute(f"UPDATE message_routes SET {change}")  # noqa: S608
        assert await replays.api.refuse(endpoints.create_replay, **wanted) == ("ROUTE_STOPPED", 409)


async def test_held_jobs_are_sent_when_their_route_takes_jobs_again(replays: Replays) -> None:
    for number in (2, 1, 3):
        await replays.add_job(number, status="held")
    await replays.pool.execute("UPDATE message_routes SET paused_at = now()")
    await replays.run()
    assert await replays.sent() == []
    await replays.pool.execute("UPDATE message_routes SET paused_at = NULL")
    await replays.run()
    await replays.run()
    assert await replays.numbers() == [3, 2, 1]
    assert await replays.statuses() == {"waiting": 3}


async def test_a_release_that_was_interrupted_is_made_again(replays: Replays) -> None:
    await replays.add_job(1, status="held")
    await replays.run()
    # The host died before it noted the release; the copies that it sent are void from now on.
    await replays.pool.execute("UPDATE delivery_jobs SET status = 'held'")
    await replays.run()
    sent = [headers for _, _, headers in await replays.sent()]
    live = await replays.pool.fetchval("SELECT replay_id::text FROM delivery_jobs")
    assert [live in headers for headers in sent] == [False, True]


async def test_held_jobs_of_a_deleted_route_are_sent_to_be_refused(replays: Replays) -> None:
    await replays.add_job(1, status="held")
    await replays.pool.execute("DELETE FROM message_routes")
    await replays.run()
    assert len(await replays.sent()) == 1


async def test_held_jobs_are_released_in_shares(replays: Replays) -> None:
    replays.scope = replace(replays.scope, settings=ReplaySettings(released=2))
    for number in (3, 2, 1):
        await replays.add_job(number, status="held")
    await replays.run()
    assert await replays.numbers() == [3, 2]
