"""Publishes jobs to a NATS server: a tenant's own, or this host's, on the tenant's own subjects."""

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)

from functions.domain.destination_annotations import Format
from functions.domain.nats_credentials import Credentials, parse_credentials, read_seed
from functions.outbound.receipt import Receipt
from functions.outbound.transport.faults import DestinationRefused, Fault
from functions.outbound.transport.nats import NatsConnection, TooLarge
from functions.route_delivery.bodies import Body, encode_body
from functions.route_delivery.connected_sender import ConnectedSender, Target, sender_hooks
from functions.route_delivery.deliverer import deliverer
from functions.route_delivery.destinations import EndpointKey
from functions.route_delivery.guarded import (
    CONNECT_OVERTIME_S,
    GuardedSettings,
    fingerprint,
    not_json,
    receipt_of,
)
from functions.route_delivery.host_names import HostName, Port
from functions.route_delivery.job import Job
from functions.route_delivery.templates import PATH_PATTERN, render
from functions.route_delivery.tls_fields import TlsFields
from runtime import Context, Unsendable

_MAX_SUBJECT_CHARACTERS = 255
_SUBJECT = re.compile(r"[A-Za-z0-9_$=-]+(?:\.[A-Za-z0-9_$=-]+)*")
_NOT_IN_A_TOKEN = re.compile(r"[^A-Za-z0-9_=-]")
_TENANT = "{tenant_id}"
# What this host uses for itself, whatever the operator's setting says.
_INTERNAL = frozenset(
    {
        "_INBOX",
        "_RUNTIME",
        "advisories",
        "commands",
        "dead_letters",
        "device_events",
        "downlinks",
        "email",
        "leases",
        "mailbox",
        "management",
        "notices",
        "polled",
        "routes",
        "schedules",
        "shadow",
        "sms",
        "telemetry",
        "tenant",
        "webhooks",
    }
)

SubjectTemplate = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=1024,
        pattern=rf"^(?:[A-Za-z0-9_$=.-]|\{{{PATH_PATTERN}\}})+$",
    ),
]
Credential = Annotated[SecretStr, Field(min_length=1, max_length=8192)]


class Settings(GuardedSettings):
    """Settings of the delivery to NATS servers.

    Attributes:
        own_subjects: where on this host's own server a route without a `host` may publish, such as
            `republish.{tenant_id}.>`; empty for nowhere.
    """

    timeout_s: Annotated[float, Field(gt=0, le=120)] = 10.0
    per_endpoint: Annotated[int, Field(ge=1, le=1000)] = 8
    own_subjects: str = ""

    @field_validator("own_subjects")
    @classmethod
    def _are_of_tenants(cls, text: str) -> str:
        first, *others = text.split(".")
        if text and (others[-1:] != [">"] or _TENANT not in others):
            raise ValueError(f"own_subjects must have the token {_TENANT} and end with the token >")
        if first in _INTERNAL or first.startswith("$") or first in {"*", ">", _TENANT}:
            raise ValueError("own_subjects must not begin with what the host uses for itself")
        return text


def _check_seed(seed: SecretStr) -> SecretStr:
    read_seed(seed.get_secret_value())
    return seed


def _check_credentials(credentials: SecretStr) -> SecretStr:
    parse_credentials(credentials.get_secret_value())
    return credentials


class Destination(TlsFields):
    """The `destination_config` of a route of type `nats_republish`.

    Attributes:
        host: the server's name or address; absent for this host's own server, where the route may
            publish on subjects of its tenant alone.
        tls: refuse to go on without TLS; a server that asks for TLS gets it anyway.
        user: with `password`, for the server.
        token: for the server.
        nkey_seed: a user's seed, `SU…`.
        credentials: the text of a credentials file, with JWT and seed.
        subject: where to; `/` of a value becomes `.`, and signs that no subject may have `_`.
        jetstream: delivered when a stream has stored the message. Without it, delivered when the
            server has taken the message, whoever listens.
        body: the device's payload, or the message with its ids, topic and time.
    """

    # What the validator below says, as far as a schema can say it.
    model_config = ConfigDict(
        json_schema_extra={
            "dependentRequired": {
                "password": ["user"],
                **{way: ["host"] for way in ("user", "token", "nkey_seed", "credentials")},
            }
        }
    )

    host: HostName | None = None
    port: Port = 4222
    user: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    password: Credential | None = None
    token: Credential | None = None
    nkey_seed: Annotated[Credential, AfterValidator(_check_seed), Format("nats-seed")] | None = None
    credentials: (
        Annotated[Credential, AfterValidator(_check_credentials), Format("nats-credentials")] | None
    ) = None
    subject: SubjectTemplate = "republish.{tenant_id}.{device_id}.{msg_type}"
    jetstream: bool = True
    body: Body = "payload"

    @model_validator(mode="after")
    def _fits_together(self) -> "Destination":
        ways = (self.user, self.token, self.nkey_seed, self.credentials)
        if sum(way is not None for way in ways) > 1:
            raise ValueError("only one of user, token, nkey_seed and credentials can be used")
        if self.host is None and any(way is not None for way in ways):
            raise ValueError("credentials need a host")
        return self

    @property
    def login(self) -> Credentials:
        """How the client proves who it is."""
        if self.credentials is not None:
            return parse_credentials(self.credentials.get_secret_value())
        return Credentials(
            self.user, *(_clear(each) for each in (self.password, self.token, self.nkey_seed))
        )


def _clear(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def endpoint_of(destination: Destination) -> EndpointKey:
    """The endpoint is server and credentials; its origin is the server, as it is connected to."""
    if destination.host is None:
        return EndpointKey("own")
    server = f"nats://{destination.host}:{destination.port}"
    return EndpointKey(f"{server} {fingerprint(destination.login)}", destination.origin_at(server))


class Sender(ConnectedSender[Credentials, NatsConnection]):
    """Publishes to servers, over connections that wait for the next message."""

    async def publish(self, job: Job, to: Destination, subject: str, data: bytes) -> None:
        """Publish; returns when the server, or a stream of it, has the message.

        Raises:
            DestinationRefused: the policy allows no address of the server.
            Fault: it is not confirmed.
        """
        target = Target(job.tenant_id, to.host or "", to.port, to.tls, to.certificates, to.login)

        async def work(connection: NatsConnection) -> None:
            publish = connection.store if to.jetstream else connection.publish
            await publish(subject, data, msg_id=job.job_id)

        await self._run(target, work)

    async def _connect(self, to: Target[Credentials]) -> NatsConnection:
        return await NatsConnection.open(
            self._dialer,
            to.host,
            to.port,
            to.login,
            tls=await self._tls.of(to.certificates),
            needs_tls=to.tls,
            timeout_s=self._timeout_s,
        )


async def send(job: Job, destination: Destination, ctx: Context[Sender]) -> Receipt:
    """Publish one job, under its id as the message's."""
    try:
        data = encode_body(job, destination.body)
    except ValueError:
        return not_json()
    subject = render(destination.subject, job, escape=escape)
    if not _SUBJECT.fullmatch(subject) or len(subject) > _MAX_SUBJECT_CHARACTERS:
        return _subject_refused()
    if destination.host is None:
        return await _send_to_own(job, destination, subject, data, ctx)
    try:
        await ctx.state.publish(job, destination, subject, data)
    except TooLarge as fault:
        return Receipt("refused", fault.code, fault.reason)
    except (DestinationRefused, Fault) as fault:
        return receipt_of(fault)
    return Receipt("delivered")


async def _send_to_own(
    job: Job, destination: Destination, subject: str, data: bytes, ctx: Context[Sender]
) -> Receipt:
    """On a subject of the tenant, and on no other: the subject is judged as it turned out."""
    if not is_allowed(subject, ctx.settings.own_subjects, job.tenant_id):
        return _subject_refused()
    try:
        if destination.jetstream:
            await ctx.publish(subject, data, msg_id=job.job_id)
        else:
            await ctx.publish_core(subject, data)
    except Unsendable:
        reason = "the message is larger than the server takes"
        return Receipt("refused", "PAYLOAD_TOO_LARGE", reason, health="unknown")
    return Receipt("delivered")


def is_allowed(subject: str, own_subjects: str, tenant_id: str) -> bool:
    """Whether a subject is below the prefix that the operator gives to a tenant."""
    prefix = own_subjects.replace(_TENANT, tenant_id).removesuffix(">")
    return bool(prefix) and subject.startswith(prefix) and len(subject) > len(prefix)


def escape(value: str) -> str:
    """A value as tokens of a subject: levels by `/`, and `_` for what no token may have."""
    return ".".join(_NOT_IN_A_TOKEN.sub("_", level) or "_" for level in value.split("/"))


def _subject_refused() -> Receipt:
    reason = "the message's subject is empty, too long, or not one that the route may use"
    return Receipt("refused", "SUBJECT_NOT_ALLOWED", reason, health="unknown")


_open, _close = sender_hooks(Sender)


deliver, start, stop = deliverer(
    "nats_republish",
    Destination,
    send,
    endpoint=endpoint_of,
    start=_open,
    stop=_close,
    overtime_s=CONNECT_OVERTIME_S,
)
