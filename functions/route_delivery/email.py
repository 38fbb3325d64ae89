"""Sends jobs as mail, through the installation's own SMTP server."""

import re
import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from functions.domain.mail.composing import Mail, compose, make_message_id
from functions.domain.mail.smtp import Security, Sent, SmtpClient, SmtpFault, SmtpServer
from functions.domain.rate_limiter import RateLimiter
from functions.outbound.receipt import EndpointHealth, Outcome, Receipt
from functions.outbound.settings import DeliverySettings
from functions.route_delivery.deliverer import deliverer
from functions.route_delivery.destinations import EndpointKey
from functions.route_delivery.guarded import fingerprint
from functions.route_delivery.job import Job
from functions.route_delivery.templates import PATH_PATTERN, TemplateText, render
from runtime import Context

MAX_RECIPIENTS = 20
MAX_SUBJECT_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 50_000

_HOUR_S = 3600.0
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_ADDRESS = r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*$"

EmailAddress = Annotated[str, StringConstraints(min_length=3, max_length=254, pattern=_ADDRESS)]
SubjectText = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=500,
        # As any template, and without line ends, which would begin another header.
        pattern=rf"^(?:[^{{}}\x00-\x1f\x7f-\x9f]|\{{\{{|\}}\}}|\{{{PATH_PATTERN}\}})*$",
    ),
]


class Settings(DeliverySettings):
    """Settings of the delivery by mail.

    Attributes:
        host: the SMTP server; empty for none, and then every attempt fails.
        port: of the server.
        security: `starttls`, `tls` from the first byte, or `none`.
        username: for the server, with `password`.
        sender: the address in `From`.
        allowed_domains: the domains that recipients may have, by commas or blanks; empty for all.
        max_connections: to the server, at a time.
        per_tenant_per_hour: mails that a tenant may send in an hour; what exceeds it waits.
    """

    host: str = ""
    port: Annotated[int, Field(ge=1, le=65_535)] = 587
    security: Security = "starttls"
    username: str = ""
    password: SecretStr = SecretStr("")
    sender: str = ""
    allowed_domains: str = ""
    max_connections: Annotated[int, Field(ge=1, le=100)] = 4
    per_tenant_per_hour: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    timeout_s: Annotated[float, Field(gt=0, le=120)] = 30.0
    per_endpoint: Annotated[int, Field(ge=1, le=1000)] = 4

    @model_validator(mode="after")
    def _has_a_sender(self) -> "Settings":
        if self.host and not re.fullmatch(_ADDRESS, self.sender):
            raise ValueError("a host needs a sender, such as alerts@example.com")
        return self


class Destination(BaseModel):
    """The `destination_config` of a route of type `email`.

    Attributes:
        to: the recipients.
        subject: one line.
        text: the mail.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    to: Annotated[tuple[EmailAddress, ...], Field(min_length=1, max_length=MAX_RECIPIENTS)]
    subject: SubjectText = "{device_id}: {msg_type}"
    text: TemplateText = "{device_id} sent at {stored_at}:\n\n{payload}\n"


def endpoint_of(destination: Destination) -> EndpointKey:
    """The endpoint is the list of recipients; all mail has one origin."""
    return EndpointKey(f"mail {fingerprint(sorted(destination.to))}", "smtp")


class Sender:
    """Sends mail, over connections that wait for the next one."""

    def __init__(self, settings: Settings) -> None:
        self._sender = settings.sender
        self._allowed = frozenset(settings.allowed_domains.lower().replace(",", " ").split())
        self._client = SmtpClient(
            SmtpServer(
                settings.host,
                settings.port,
                settings.security,
                settings.username or None,
                settings.password.get_secret_value() or None,
                max_connections=settings.max_connections,
                timeout_s=settings.timeout_s,
            )
        )
        hourly = settings.per_tenant_per_hour
        self._wait_s = _HOUR_S / hourly
        self._rate: RateLimiter[str] = RateLimiter(hourly / _HOUR_S, burst=hourly)

    def wait_s(self, tenant_id: str) -> float | None:
        """Seconds until the tenant may send; None, and one mail counted, if it may now."""
        return None if self._rate.take(tenant_id, time.time_ns()) else self._wait_s

    def allows(self, to: tuple[str, ...]) -> bool:
        """Whether the operator allows the domains of all recipients."""
        domains = {address.rpartition("@")[2].lower() for address in to}
        return not self._allowed or domains <= self._allowed

    async def send(self, job: Job, destination: Destination) -> Sent:
        """Send a job's mail.

        Raises:
            SmtpFault: no recipient can be said to have it.
        """
        data = compose(mail_of(job, destination, self._sender))
        return await self._client.send(self._sender, destination.to, data)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def mail_of(job: Job, destination: Destination, sender: str) -> Mail:
    """The mail, the same on every attempt: a receiver recognises a repeat by its Message-ID."""
    return Mail(
        make_message_id(job.tenant_id, job.job_id, sender),
        job.stored_at,
        sender,
        destination.to,
        render(destination.subject, job, escape=in_one_line, max_characters=MAX_SUBJECT_CHARACTERS),
        text=render(destination.text, job, max_characters=MAX_TEXT_CHARACTERS),
    )


def in_one_line(value: str) -> str:
    """A value without line ends and other control characters, which could begin a header."""
    return _CONTROL.sub(" ", value)


async def send(job: Job, destination: Destination, ctx: Context[Sender]) -> Receipt:
    """Send one job's mail."""
    sender = ctx.state
    if not ctx.settings.host:
        reason = "this installation has no mail server"
        return Receipt("failed", "NO_MAIL_SERVER", reason, health="unknown")
    if not sender.allows(destination.to):
        reason = "a recipient's domain is not allowed here"
        return Receipt("refused", "DESTINATION_NOT_ALLOWED", reason, health="unknown")
    if wait_s := sender.wait_s(job.tenant_id):
        reason = "the tenant has sent as many mails as it may in an hour"
        return Receipt("skipped", "RATE_LIMITED", reason, retry_after_s=wait_s)
    try:
        return judge(await sender.send(job, destination))
    except SmtpFault as fault:
        outcome: Outcome = "refused" if fault.is_permanent else "failed"
        # What is the server's fault is no sign of these recipients.
        health: EndpointHealth = "unreachable" if fault.is_of_server else "answered"
        if fault.is_of_recipients:
            health = "failed"
        return Receipt(outcome, fault.code, fault.reason, fault.status_code, health=health)


def judge(sent: Sent) -> Receipt:
    """The result of a mail that the server has answered for: done, if it took one recipient."""
    if sent.accepted:
        left_out = ", ".join(f"{one}: {each.reason}" for one, each in sent.refused.items())
        return Receipt("delivered", excerpt=f"not accepted: {left_out}" if left_out else sent.reply)
    told = ", ".join(f"{one}: {each.reason}" for one, each in sent.refused.items())
    is_final = all(each.is_permanent for each in sent.refused.values())
    reason = "the mail server accepted no recipient"
    outcome: Outcome = "refused" if is_final else "failed"
    return Receipt(outcome, "RECIPIENTS_REFUSED", reason, excerpt=told, health="answered")


async def _open(ctx: Context) -> Sender:
    return Sender(ctx.settings)


async def _close(ctx: Context[Sender]) -> None:
    await ctx.state.close()


deliver, start, stop = deliverer(
    "email", Destination, send, endpoint=endpoint_of, start=_open, stop=_close, overtime_s=5.0
)
