"""Sends each event to every subscriber, as signed webhooks."""

import time
from datetime import UTC, datetime

from pydantic import AnyHttpUrl, BaseModel, SecretStr
from standardwebhooks.webhooks import Webhook

from runtime import Context, Event, Publication, Reject, Retry

HTTP_GONE = 410


class Settings(BaseModel):
    """Who is told, and the key that signs the webhooks."""

    subscribers: dict[str, AnyHttpUrl]
    signing_key: SecretStr


class Happened(BaseModel):
    """Something that subscribers want to know."""

    kind: str
    text: str


class Job(BaseModel):
    """One event for one subscriber."""

    id: str
    subscriber: str
    body: str


async def fan_out(event: Event[Happened], ctx: Context) -> None:
    """Makes a job for each subscriber."""
    settings: Settings = ctx.settings
    happened = f"{event.stream}-{event.sequence}"
    await ctx.publish_many(
        [
            Publication(
                subject=f"jobs.{name}",
                data=Job(
                    id=f"{happened}-{name}", subscriber=name, body=event.data.model_dump_json()
                )
                .model_dump_json()
                .encode(),
                # A repeated call makes the same ids, and the stream drops the copies.
                msg_id=f"{happened}-{name}",
            )
            for name in settings.subscribers
        ]
    )


async def deliver(event: Event[Job], ctx: Context) -> None:
    """Posts one job to its subscriber."""
    settings: Settings = ctx.settings
    job = event.data
    address = settings.subscribers.get(job.subscriber)
    if address is None:
        raise Reject("NO_SUCH_SUBSCRIBER", f"{job.subscriber} is not subscribed any more")
    now = int(time.time())
    answer = await ctx.http.post(
        str(address),
        content=job.body,
        headers={
            "content-type": "application/json",
            "webhook-id": job.id,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(settings.signing_key, job, now),
        },
    )
    if answer.status_code == HTTP_GONE:
        raise Reject("GONE", "the subscriber wants no more webhooks")
    if not answer.is_success:
        raise Retry(f"the subscriber answered {answer.status_code}")


def sign(key: SecretStr, job: Job, now: int) -> str:
    """The signature of a job, as Standard Webhooks wants it."""
    return Webhook(key.get_secret_value()).sign(
        msg_id=job.id, timestamp=datetime.fromtimestamp(now, UTC), data=job.body
    )
