"""Turns jobs of the two-token form on `routes.{tenant_id}` into jobs of the three-token form.

The older form carries its route inline, with its secrets. This function uses only the route's id
and drops the rest. The consumer of the route's type then delivers the job with the configuration in
the database.
"""

from pathlib import Path

from functions.domain.identifiers import job_id
from functions.domain.named_sql import read_queries
from functions.domain.topics import Topic, parse_topic
from functions.route_delivery.job import Job, SeedJob, route_key, without_device_secret
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))


async def dispatch_seed_form(event: Event[SeedJob], ctx: Context) -> None:
    """Publish the job for its route's type, under an id that is the same on every redelivery.

    Raises:
        Reject: the tenant is not the subject's, the topic is not one of the tenant's device topics,
            or the route does not exist.
    """
    seed = event.data
    if event.subject != f"routes.{seed.tenant_id}":
        raise Reject("TENANT_MISMATCH", "the job names another tenant than its subject")
    topic = parse_topic(seed.topic)
    if not isinstance(topic, Topic) or topic.tenant_id != seed.tenant_id:
        raise Reject("BAD_TOPIC_FORMAT", "the job's topic is not one of its tenant's device topics")
    destination_type = await ctx.postgres.fetchval(
        _QUERIES["find_route_type"], seed.tenant_id, route_key(seed.route.id)
    )
    if destination_type is None:
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
    await ctx.publish(
        f"routes.{seed.tenant_id}.{destination_type}",
        job.model_dump_json().encode(),
        msg_id=job.job_id,
    )
