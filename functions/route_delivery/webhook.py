"""Delivers jobs to webhooks, signed as Standard Webhooks specifies."""

from functions.outbound.endpoint import WebhookDestination
from functions.outbound.receipt import Receipt
from functions.outbound.transport.faults import ProxyFailed
from functions.outbound.webhook_sender import (
    WebhookSender,
    WebhookSettings,
    open_sender,
)
from functions.route_delivery.bodies import encode_event
from functions.route_delivery.deliverer import deliverer
from functions.route_delivery.destinations import EndpointKey
from functions.route_delivery.job import Job
from runtime import Context

# The name under which the host looks for a function's settings.
Settings = WebhookSettings


async def send(job: Job, destination: WebhookDestination, ctx: Context[WebhookSender]) -> Receipt:
    """POST one job to the endpoint of its route."""
    try:
        body = encode_event(job)
    except ValueError:
        reason = "the payload cannot be written as JSON"
        return Receipt("refused", "PAYLOAD_NOT_JSON", reason, health="unknown")
    receipt = await ctx.state.post(destination.endpoint, job.job_id, body, ctx.deadline_s)
    if receipt.code == ProxyFailed.code and ctx.state.may_tell_of_proxy():
        ctx.log.error("Webhooks wait, as the egress proxy does not work", reason=receipt.reason)
    return receipt


def key_of(destination: WebhookDestination) -> EndpointKey:
    """The endpoint is the URL; its origin is the URL's scheme, host and port.

    Raises:
        ValueError: a secret of the destination cannot be used.
    """
    endpoint = destination.endpoint
    return EndpointKey(endpoint.url, endpoint.origin)


async def open_state(ctx: Context) -> WebhookSender:
    """Make what all deliveries share."""
    return await open_sender(ctx.settings)


async def close_sender(ctx: Context[WebhookSender]) -> None:
    """Close the connections."""
    await ctx.state.aclose()


deliver, start, stop = deliverer(
    "webhook",
    WebhookDestination,
    send,
    endpoint=key_of,
    start=open_state,
    stop=close_sender,
    # Each wait of the sender ends at the deadline, or two seconds later.
    overtime_s=None,
)
