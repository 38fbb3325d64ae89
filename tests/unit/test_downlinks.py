"""Messages to devices and events of devices, as they are stored."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from functions.domain.device_events import DeviceEvent, is_event_filter, takes_event
from functions.domain.downlinks import Downlink, downlink_stream_subject, read_downlink
from functions.domain.topics import BadTopic
from runtime import Message

EXPIRES_AT = datetime(2030, 1, 1, tzinfo=UTC)
COMMAND = {"command_id": "c-1", "name": "reboot", "expires_at": EXPIRES_AT.isoformat()}


def read(subject: str, content: object = COMMAND) -> Downlink | BadTopic:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_downlink(Message(subject, data))


def test_a_command_is_read_with_its_topic_and_its_end() -> None:
    subject = downlink_stream_subject("test", "d.1", "commands", "c-1")
    assert subject == "downlinks.test.d//1.commands.c-1"
    downlink = read(subject)
    assert isinstance(downlink, Downlink)
    assert downlink.topic.text == "tenant/test/device/d.1/commands"
    assert downlink.command is not None
    assert downlink.command.command_id == "c-1"
    assert not downlink.has_expired(EXPIRES_AT - timedelta(seconds=1))
    assert downlink.has_expired(EXPIRES_AT)


@pytest.mark.parametrize(("timeout_s", "may_wait_s"), [(None, 90), (30, 30), (200, 90)])
def test_a_broker_may_keep_a_command_until_it_expires_or_times_out(
    timeout_s: int | None, may_wait_s: float
) -> None:
    content = COMMAND if timeout_s is None else {**COMMAND, "timeout_s": timeout_s}
    downlink = read(downlink_stream_subject("test", "d.1", "commands", "c-1"), content)
    assert isinstance(downlink, Downlink)
    assert downlink.may_wait_s(EXPIRES_AT - timedelta(seconds=90)) == may_wait_s


def test_what_is_no_command_has_no_end() -> None:
    downlink = read(downlink_stream_subject("test", "d1", "shadow/delta"), b"\xff")
    assert isinstance(downlink, Downlink)
    assert (downlink.topic.msg_type, downlink.body) == ("shadow/delta", b"\xff")
    assert downlink.command is None
    assert not downlink.has_expired(datetime.now(UTC))
    assert downlink.may_wait_s(datetime.now(UTC)) is None


@pytest.mark.parametrize(
    ("subject", "content"),
    [
        ("downlinks.test.d1", COMMAND),
        ("downlinks", COMMAND),
        ("downlinks.te st.d1.commands.c-1", COMMAND),
        ("downlinks.test.d/1.commands.c-1", COMMAND),
        ("downlinks.test.//.commands.c-1", COMMAND),
        ("downlinks.test.d1.commands", COMMAND),
        ("downlinks.test.d1.commands.c-2", COMMAND),
        ("downlinks.test.d1.commands.c-1.more", COMMAND),
        ("downlinks.test.d1.commands.c-1", b"\xff"),
        ("downlinks.test.d1.commands.c-1", [1]),
        ("downlinks.test.d1.commands.c-1", {**COMMAND, "command_id": 7}),
        ("downlinks.test.d1.commands.c-1", {**COMMAND, "expires_at": None}),
        ("downlinks.test.d1.commands.c-1", {**COMMAND, "timeout_s": "1"}),
        ("downlinks.test.d1.commands.c-1", {**COMMAND, "expires_at": "2030-01-01T00:00:00"}),
        ("downlinks.test.d1.commands.ack", COMMAND),
        ("downlinks.test.d1.telemetry", COMMAND),
        ("downlinks.test.d1.shadow.reported", COMMAND),
        ("downlinks.test.d1.a/../b", COMMAND),
    ],
)
def test_what_is_for_no_device_is_not_read(subject: str, content: object) -> None:
    assert isinstance(read(subject, content), BadTopic)


@pytest.mark.parametrize(
    ("topic_filter", "asks", "takes"),
    [
        ("tenant/test/device/d.1/commands/state", True, True),
        ("tenant/+/device/+/commands/#", True, True),
        ("tenant/test/device/+/commands/+", True, True),
        ("tenant/test/device/d2/commands/state", True, False),
        ("tenant/test/device/+/commands/ack", True, False),
        ("tenant/test/device/+/commands", True, False),
        ("tenant/test/device/+/#", False, False),
        ("tenant/test/device/+/+/state", False, False),
        ("#", False, False),
        ("tenant/test/device/+/telemetry", False, False),
    ],
)
def test_routes_get_events_that_their_filter_names(
    topic_filter: str, asks: bool, takes: bool
) -> None:
    event = DeviceEvent(
        event_id="command-1-2",
        tenant_id="test",
        device_id="d.1",
        kind="commands/state",
        at=EXPIRES_AT,
        payload={},
    )
    assert event.subject == "device_events.test.d//1.commands.state"
    assert is_event_filter(topic_filter) == asks
    assert takes_event(topic_filter, event) == takes
