"""Every subject of the shipped manifests is the host's or, by a decision, open to all clients."""

import pytest

from functions.domain.topics import DOWNLINKS, downlink_subject, shadow_kind
from functions.erasure.belonging import FAMILIES
from runtime.broker.leases import with_leases
from runtime.broker.micro_protocol import is_request
from runtime.cli.manifests import SHIPPED
from runtime.embedded.nats_access import anonymous_denied_publish
from runtime.manifest import Manifest, read
from runtime.message import Message
from runtime.process.placeholders import placeholders
from runtime.settings import HostSettings
from runtime.subjects import HOST_SUBJECTS, covers
from tests.support.documentation import ROOT

# What a client without a name may publish to, and why. A subject that is in no stream and no
# endpoint of `manifests/` or `deploy/` has no place here.
OPEN = {
    "telemetry.>": "each message proves its device",
    "shadow.>": "each message proves its device",
    "commands.>": "each message proves its device",
    "tenant.>": "each message proves its device; what goes to devices is denied",
    "analytics.events.>": "events of applications",
    "sensors.>": "the homelab's readings",
    "iot.>": "the homelab's readings",
    "logs.>": "the homelab's logs",
    "events.>": "the homelab's events",
    "sms.send": "the seed's applications queue messages here",
    "email.send": "the seed's applications queue messages here",
    "webhooks.deliver": "the seed's applications queue messages here",
    "webhooks.retry": "the seed's applications queue messages here",
    "polling.poll": "each request has the route's token",
    "polling.seek": "each request has the route's token",
    "polling.readers.list": "each request has the route's token",
    "polling.readers.forget": "each request has the route's token",
    "webhook-keys.list": "public keys, for everybody",
}
_DENIED = anonymous_denied_publish()


def declared() -> Manifest:
    paths = [*sorted(SHIPPED.glob("*.yaml")), *sorted((ROOT / "deploy").rglob("*.yaml"))]
    return with_leases(read(paths, placeholders(HostSettings())))


def is_denied(subject: str) -> bool:
    return any(covers(denied, subject) for denied in _DENIED)


def test_every_declared_subject_is_the_hosts_or_open_by_a_decision() -> None:
    manifest = declared()
    subjects = {subject for stream in manifest.streams.values() for subject in stream.subjects}
    subjects |= {
        function.endpoint.subject or ""
        for function in manifest.functions.values()
        if function.endpoint is not None
    }

    assert {subject for subject in subjects if not is_denied(subject)} == OPEN.keys()


def test_the_families_that_name_a_tenant_are_the_hosts_or_open_by_a_decision() -> None:
    families = {f"{family}.>" for family in FAMILIES}

    assert {family for family in families if not is_denied(family)} <= OPEN.keys()


@pytest.mark.parametrize("kind", sorted(DOWNLINKS))
def test_nothing_that_the_platform_sends_to_devices_can_be_forged(kind: str) -> None:
    named = shadow_kind("n", kind.removeprefix("shadow/")) if kind.startswith("shadow/") else kind

    for each in (kind, named):
        assert is_denied(downlink_subject("acme", "d.1", each))


@pytest.mark.parametrize("pattern", HOST_SUBJECTS)
def test_no_endpoint_answers_on_a_subject_of_the_hosts(pattern: str) -> None:
    subject = pattern.replace("*", "x").replace(">", "x.y")

    assert not is_request(Message("echo", b"", reply=subject))
    assert is_request(Message("echo", b"", reply="_INBOX.x.y"))
