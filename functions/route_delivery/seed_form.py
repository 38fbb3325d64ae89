"""Turns jobs of the two-token form on `routes.{tenant_id}` into jobs of the three-token form.

The older form carries its route inline, with its secrets. This function uses only the route's id
and drops the rest. The consumer of the route's type then delivers the job with the configuration in
the database.
"""

from pathlib import Path

from functions.domain.delivery_options import OrderKey
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.identifiers import job_id
from functions.domain.named_sql import read_queries
from functions.domain.outbox import NewJob, add_jobs
from functions.domain.topics import Topic, parse_topic
from functions.route_delivery.job import Job, SeedJob, route_key, without_device_secret
from functions.route_delivery.jobs_again import TargetRoute
from runtime import Context, Event, Reject, Retry

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))


async def start(ctx: Context) -> Evaluator:
    """What evaluates the order keys of the routes."""
    return Evaluator(ctx.log)


async def stop(ctx: Context) -> None:
    """End the process of the order keys."""
    await ctx.state.close()


async def dispatch_seed_form(event: Event[SeedJob], ctx: Context) -> None:
    """Make the job for its route's type, once however often the message is redelivered.

    Raises:
        Reject: the tenant is not the subject's, the topic is not one of the tenant's device topics,
            or the route does not exist.
        Retry: the tenant's order keys have used up their time.
    """
    seed = event.data
    if event.subject != f"routes.{seed.tenant_id}":
        raise Reject("TENANT_MISMATCH", "the job names another tenant than its subject")
    topic = parse_topic(seed.topic)
    if not isinstance(topic, Topic) or topic.tenant_id != seed.tenant_id:
        raise Reject("BAD_TOPIC_FORMAT", "the job's topic is not one of its tenant's device topics")
    route = await ctx.postgres.fetchrow(
        _QUERIES["find_route_type"], seed.tenant_id, route_key(seed.route.id)
    )
    if route is None:
        raise Reject("ROUTE_GONE", "the job's route does not exist")
    job = Job(
        job_id=job_id(event.message.origin, seed.route.id),
        route_id=seed.route.id,
        tenant_id=seed.tenant_id,
        device_id=topic.device_id,
        topic=seed.topic,
        msg_type=topic.msg_type,
        payload=without_device_secret(seed.payload),
        stored_at=event.stored_at,
    )
    order_key = OrderKey(route["order_by"], job.route_id) if route["order_by"] else None
    target = TargetRoute(job.route_id, route["destination_type"], order_key=order_key)
    [decision] = await target.decide(ctx.state, [job])
    if decision.verdict != "taken":
        raise Retry(decision.reason)
    subject = target.subject(job, decision.key)
    content = job.model_dump_json().encode()
    names = (job.tenant_id, job.job_id, job.route_id, route["destination_type"])
    async with ctx.postgres.acquire() as connection, connection.transaction():
        await add_jobs(connection, [NewJob(*names, content, refusal=None, subject=subject)])
