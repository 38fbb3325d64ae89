"""Publishes jobs to an MQTT broker: a tenant's own, or to devices of the tenant at this host.

Each message is sent with QoS 1, and delivered when the broker has confirmed it.
"""

import re
from typing import Annotated

from pydantic import ConfigDict, Field, SecretStr, StringConstraints, model_validator

from functions.domain.topics import Topic, downlink_subject, parse_topic
from functions.outbound.receipt import EndpointHealth, Receipt
from functions.outbound.transport.faults import DestinationRefused, Fault
from functions.outbound.transport.mqtt import (
    Busy,
    Login,
    MqttConnection,
    Publication,
    TooLarge,
    Unacceptable,
    Version,
)
from functions.route_delivery.bodies import Body, encode_body
from functions.route_delivery.connected_sender import ConnectedSender, Target, sender_hooks
from functions.route_delivery.deliverer import deliverer
from functions.route_delivery.destinations import EndpointKey
from functions.route_delivery.guarded import (
    CONNECT_OVERTIME_S,
    GuardedSettings,
    not_json,
    receipt_of,
)
from functions.route_delivery.host_names import HostName, Port
from functions.route_delivery.job import Job
from functions.route_delivery.templates import PATH_PATTERN, render
from functions.route_delivery.tls_fields import TlsFields
from runtime import Context, Unsendable

ROUTED = "routed"
"""The message type of what a route sends to a device at this host."""

_MAX_TOPIC_BYTES = 1024
_DEFAULT_PORTS = {False: 1883, True: 8883}
_NOT_IN_A_LEVEL = re.compile(r"[\x00-\x1f\x7f-\x9f+#\ufffe\uffff]")
_PERMANENT = (TooLarge, Unacceptable)

TopicTemplate = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=1024,
        # `$` begins the topics of brokers themselves; `+` and `#` are for subscribers.
        pattern=rf"^(?:[^{{}}$+#\x00-\x1f\x7f]|\{{{PATH_PATTERN}\}})+$",
    ),
]
Credential = Annotated[SecretStr, Field(min_length=1, max_length=4096)]


class Settings(GuardedSettings):
    """Settings of the delivery to MQTT brokers."""

    timeout_s: Annotated[float, Field(gt=0, le=120)] = 10.0
    per_endpoint: Annotated[int, Field(ge=1, le=1000)] = 8


class Destination(TlsFields):
    """The `destination_config` of a route of type `mqtt_republish`.

    Attributes:
        host: the broker's name or address; absent for this host's own devices, to which the route
            may send on `tenant/{tenant}/device/{device}/routed` alone.
        port: 1883 by default, and 8883 with TLS.
        tls: connect with TLS, and check the certificate against `host`.
        version: of the protocol. Brokers of version 3.1.1 confirm even what they refuse to pass on.
        username: for the broker.
        password: for the broker.
        topic: where to; values of a message may have `/` and so several levels.
        retain: the broker keeps the message for later subscribers.
        body: the device's payload, or the message with its ids, topic and time.
    """

    # What the validator below says, as far as a schema can say it.
    model_config = ConfigDict(
        json_schema_extra={
            "dependentRequired": {
                "password": ["username"],
                **{name: ["host"] for name in ("port", "username", "client_certificate")},
            }
        }
    )

    host: HostName | None = None
    port: Port | None = None
    version: Version = "5"
    username: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    password: Credential | None = None
    topic: TopicTemplate = "{topic}"
    retain: bool = False
    body: Body = "payload"

    @model_validator(mode="after")
    def _fits_together(self) -> "Destination":
        if self.password is not None and self.username is None:
            raise ValueError("a password needs a username")
        if self.host is None and (self.port or self.tls or self.retain or self.username):
            raise ValueError("port, tls, retain and username need a host")
        return self

    @property
    def port_number(self) -> int:
        """The port, or the usual one."""
        return self.port or _DEFAULT_PORTS[self.tls]


def endpoint_of(destination: Destination) -> EndpointKey:
    """The endpoint is broker and user; its origin is the broker, as it is connected to."""
    if destination.host is None:
        return EndpointKey("devices")
    broker = f"mqtt{'s' if destination.tls else ''}://{destination.host}:{destination.port_number}"
    return EndpointKey(f"{broker} {destination.username or ''}", destination.origin_at(broker))


class Sender(ConnectedSender[Login, MqttConnection]):
    """Publishes to brokers, over connections that wait for the next message."""

    async def publish(self, tenant_id: str, to: Destination, publication: Publication) -> None:
        """Publish; returns when the broker has confirmed the message.

        Raises:
            DestinationRefused: the policy allows no address of the broker.
            Fault: it is not confirmed.
        """
        login = Login(
            to.version, to.username, to.password.get_secret_value() if to.password else None
        )
        target = Target(tenant_id, to.host or "", to.port_number, to.tls, to.certificates, login)
        await self._run(target, lambda connection: connection.publish(publication))

    async def _connect(self, to: Target[Login]) -> MqttConnection:
        return await MqttConnection.open(
            self._dialer,
            to.host,
            to.port,
            to.login,
            tls=await self._tls.of(to.certificates) if to.tls else None,
            timeout_s=self._timeout_s,
        )


async def send(job: Job, destination: Destination, ctx: Context[Sender]) -> Receipt:
    """Publish one job."""
    try:
        payload = encode_body(job, destination.body)
    except ValueError:
        return not_json()
    topic = render(destination.topic, job, escape=escape, max_characters=_MAX_TOPIC_BYTES)
    if destination.host is None:
        return await _send_to_device(job, topic, payload, ctx)
    if not topic or topic.startswith("$") or len(topic.encode()) > _MAX_TOPIC_BYTES:
        return _topic_refused()
    publication = Publication(topic, payload, destination.retain, (("job_id", job.job_id),))
    try:
        await ctx.state.publish(job.tenant_id, destination, publication)
    except (DestinationRefused, Fault) as fault:
        return judge(fault)
    return Receipt("delivered")


async def _send_to_device(job: Job, topic: str, payload: bytes, ctx: Context[Sender]) -> Receipt:
    """To a device of the tenant, and to nobody else: the topic is judged as it turned out."""
    to = parse_topic(topic)
    if not isinstance(to, Topic) or to.tenant_id != job.tenant_id or to.msg_type != ROUTED:
        return _topic_refused()
    try:
        await ctx.publish_core(downlink_subject(to.tenant_id, to.device_id, ROUTED), payload)
    except Unsendable:
        return Receipt("refused", TooLarge.code, TooLarge.reason, health="unknown")
    return Receipt("delivered")


def judge(fault: Fault | DestinationRefused) -> Receipt:
    """The result of an attempt that a fault has ended."""
    if isinstance(fault, _PERMANENT):
        return Receipt("refused", fault.code, fault.reason)
    if isinstance(fault, Busy):
        health: EndpointHealth = "throttled"
        return Receipt("failed", fault.code, fault.reason, health=health)
    return receipt_of(fault)


def escape(value: str) -> str:
    """A value without the signs that no level of a topic may have."""
    return _NOT_IN_A_LEVEL.sub("_", value)


def _topic_refused() -> Receipt:
    reason = "the message's topic is empty, too long, or not one that the route may use"
    return Receipt("refused", "TOPIC_NOT_ALLOWED", reason, health="unknown")


_open, _close = sender_hooks(Sender)


deliver, start, stop = deliverer(
    "mqtt_republish",
    Destination,
    send,
    endpoint=endpoint_of,
    start=_open,
    stop=_close,
    overtime_s=CONNECT_OVERTIME_S,
)
