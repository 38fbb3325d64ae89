"""Commands on a real database: created, sent, answered, cancelled, timed out."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from functions.commands.acks import apply_ack
from functions.commands.endpoints import (
    Command,
    CommandSettings,
    cancel_command,
    create_command,
    get_command,
    list_commands,
)
from functions.commands.overdue import end_overdue
from functions.management import devices, tenants
from runtime import Message
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller, stored

DEVICE = {"tenant_id": "test", "device_id": "d.1"}


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=8)
    caller = Caller(pool, settings=devices.DeviceSettings(min_token_length=3))
    long_since = {"starts_at": "2000-01-01T00:00:00Z"}
    await caller.ask(tenants.create_tenant, tenant_id="test", subscription=long_since)
    await caller.ask(devices.register_device, **DEVICE, site_id="s1", provision_token="tok")
    caller.settings = CommandSettings()
    yield caller
    await pool.close()


async def create(api: Caller, **fields: Any) -> Command:
    return await api.ask(create_command, **{**DEVICE, "name": "reboot", **fields})


def ack(sequence: int, command: Command | str, status: str, **fields: Any) -> Message:
    command_id = command if isinstance(command, str) else command.command_id
    content = {"command_id": command_id, "status": status, "provision_token": "tok", **fields}
    data = json.dumps(content).encode()
    return stored("commands.test.d//1.ack", data, sequence, stream="COMMANDS")


async def status(api: Caller, command: Command) -> str:
    shown = await api.ask(get_command, **DEVICE, command_id=command.command_id)
    return shown.status


async def late(api: Caller, command: Command) -> list[tuple[str, bool]]:
    shown = await api.ask(get_command, **DEVICE, command_id=command.command_id)
    return [(answer.status, answer.late_ack) for answer in shown.answers]


async def quarantined(api: Caller) -> list[tuple[str, bytes]]:
    rows = await api.pool.fetch("SELECT reason, payload FROM quarantine_events ORDER BY sequence")
    return [(row["reason"], row["payload"]) for row in rows]


async def test_a_command_is_sent_to_its_device(api: Caller) -> None:
    command = await create(api, arguments={"delay_s": 5})
    assert command.status == "sent"
    assert command.sent_at is not None
    [(subject, data)] = api.outbox.sent
    assert subject == "tenant.test.device.d//1.commands"
    sent = json.loads(data)
    assert (sent["command_id"], sent["name"]) == (command.command_id, "reboot")
    assert sent["arguments"] == {"delay_s": 5}


async def test_a_command_stays_queued_while_nats_is_away(api: Caller) -> None:
    api.outbox.is_away = True
    command = await create(api)
    assert (command.status, command.sent_at) == ("queued", None)


async def test_a_repeated_request_makes_and_sends_one_command(api: Caller) -> None:
    first = await create(api, command_id="mine")
    assert await create(api, command_id="mine") == first
    assert len(api.outbox.sent) == 1
    refusal = await api.refuse(create_command, **DEVICE, command_id="mine", name="other")
    assert refusal == ("COMMAND_EXISTS", 409)


async def test_unknown_and_revoked_devices_get_no_command(api: Caller) -> None:
    nobody = {"tenant_id": "test", "device_id": "nobody", "name": "reboot"}
    assert await api.refuse(create_command, **nobody) == ("DEVICE_NOT_FOUND", 404)
    await api.ask(devices.revoke_device, **DEVICE)
    refusal = await api.refuse(create_command, **DEVICE, name="reboot")
    assert refusal == ("DEVICE_REVOKED", 409)
    assert api.outbox.sent == []


@pytest.mark.parametrize("final", ["succeeded", "failed", "rejected"])
async def test_answers_bring_a_command_to_its_end(api: Caller, final: str) -> None:
    command = await create(api)
    await api.deliver(apply_ack, ack(1, command, "acked"))
    assert await status(api, command) == "acked"
    await api.deliver(apply_ack, ack(2, command, final, result={"code": 7}))
    shown = await api.ask(get_command, **DEVICE, command_id=command.command_id)
    assert (shown.status, shown.result) == (final, {"code": 7})
    assert shown.acked_at is not None
    assert shown.finished_at is not None
    assert shown.acked_at < shown.finished_at


async def test_the_enveloped_answer_is_taken_too(api: Caller) -> None:
    command = await create(api)
    payload = {"command_id": command.command_id, "status": "succeeded", "provision_token": "tok"}
    envelope = {"topic": "tenant/test/device/d.1/commands/ack", "payload": payload}
    message = stored("commands.test", json.dumps(envelope).encode(), 1, stream="COMMANDS")
    await api.deliver(apply_ack, message)
    assert await status(api, command) == "succeeded"


async def test_late_answers_are_kept_and_change_nothing(api: Caller) -> None:
    command = await create(api)
    await api.deliver(apply_ack, ack(2, command, "succeeded", result=1))
    await api.deliver(apply_ack, ack(1, command, "acked"))
    await api.deliver(apply_ack, ack(3, command, "failed", result=2))
    shown = await api.ask(get_command, **DEVICE, command_id=command.command_id)
    assert (shown.status, shown.result) == ("succeeded", 1)
    assert [(answer.status, answer.late_ack) for answer in shown.answers] == [
        ("acked", True),
        ("succeeded", False),
        ("failed", True),
    ]


async def test_a_redelivered_answer_is_kept_once(api: Caller) -> None:
    command = await create(api)
    for sequence in (1, 1, 2, 1, 2):
        answer = ack(sequence, command, "acked" if sequence == 1 else "succeeded")
        await api.deliver(apply_ack, answer)
    assert await late(api, command) == [("acked", False), ("succeeded", False)]


async def test_of_contradicting_answers_at_once_one_counts(api: Caller) -> None:
    command = await create(api)
    answers = ["succeeded", "failed", "rejected", "succeeded"]
    await asyncio.gather(
        *(api.deliver(apply_ack, ack(n, command, each)) for n, each in enumerate(answers, 1))
    )
    kept = await late(api, command)
    assert [is_late for _, is_late in kept].count(False) == 1
    [counted] = [answer for answer, is_late in kept if not is_late]
    assert await status(api, command) == counted


@pytest.mark.parametrize("answer", ["acked", "succeeded"])
async def test_a_cancelled_command_is_not_brought_back(api: Caller, answer: str) -> None:
    command = await create(api)
    for _ in range(2):
        cancelled = await api.ask(cancel_command, **DEVICE, command_id=command.command_id)
        assert cancelled.status == "cancelled"
    await api.deliver(apply_ack, ack(1, command, answer))
    assert await status(api, command) == "cancelled"
    assert await late(api, command) == [(answer, True)]


async def test_what_has_ended_cannot_be_cancelled(api: Caller) -> None:
    command = await create(api)
    await api.deliver(apply_ack, ack(1, command, "failed"))
    refusal = await api.refuse(cancel_command, **DEVICE, command_id=command.command_id)
    assert refusal == ("COMMAND_ENDED", 409)
    refusal = await api.refuse(cancel_command, **DEVICE, command_id="unknown")
    assert refusal == ("COMMAND_NOT_FOUND", 404)
    assert await api.refuse(get_command, **DEVICE, command_id="unknown") == refusal


async def test_overdue_commands_end_and_others_do_not(api: Caller) -> None:
    waiting = await create(api)
    unanswered = await create(api)
    acked = await create(api)
    await api.deliver(apply_ack, ack(1, acked, "acked"))
    api.outbox.is_away = True
    queued, unsent = await create(api), await create(api)
    await api.pool.execute(
        "UPDATE device_commands SET sent_at = now() - interval '1 hour'"
        " WHERE command_id = ANY ($1)",
        [unanswered.command_id, acked.command_id],
    )
    await api.pool.execute(
        "UPDATE device_commands SET expires_at = now() WHERE command_id = $1", unsent.command_id
    )
    await end_overdue(api.context())
    ended = [await status(api, each) for each in (waiting, unanswered, acked, queued, unsent)]
    assert ended == ["sent", "timed_out", "timed_out", "queued", "expired"]
    await api.deliver(apply_ack, ack(2, unanswered, "succeeded"))
    assert await status(api, unanswered) == "timed_out"
    assert await late(api, unanswered) == [("succeeded", True)]


async def test_commands_are_listed_newest_first(api: Caller) -> None:
    made = [(await create(api)).command_id for _ in range(3)]
    first = await api.ask(list_commands, **DEVICE, limit=2)
    rest = await api.ask(list_commands, **DEVICE, limit=2, cursor=first.next_cursor)
    listed = [command.command_id for command in (*first.items, *rest.items)]
    assert listed == made[::-1]
    assert (await api.ask(list_commands, **DEVICE, status="failed")).items == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"command_id": "unknown"}, "UNKNOWN_COMMAND"),
        ({"command_id": ""}, "ACK_INVALID"),
        ({"command_id": 7}, "ACK_INVALID"),
        ({"command_id": "\x00"}, "ACK_INVALID"),
        ({"status": "done"}, "ACK_INVALID"),
        ({"status": "sent"}, "ACK_INVALID"),
        ({"result": {"a": "\x00"}}, "ACK_INVALID"),
        ({"provision_token": "no"}, "TOKEN_INVALID"),
    ],
)
async def test_an_invalid_answer_is_quarantined_unchanged(
    api: Caller, fields: dict[str, Any], reason: str
) -> None:
    command = await create(api)
    known = {"command_id": command.command_id, "status": "acked", "provision_token": "tok"}
    data = json.dumps(known | fields).encode()
    message = stored("commands.test.d//1.ack", data, 1, stream="COMMANDS")
    for _ in range(2):
        await api.deliver(apply_ack, message)
    assert await quarantined(api) == [(reason, data)]
    assert await status(api, command) == "sent"


async def test_a_message_on_another_topic_than_answers_is_refused(api: Caller) -> None:
    command = await create(api)
    envelope = {
        "topic": "tenant/test/device/d.1/telemetry",
        "payload": {"command_id": command.command_id, "provision_token": "tok"},
    }
    data = json.dumps(envelope).encode()
    await api.deliver(apply_ack, stored("commands.test", data, 1, stream="COMMANDS"))
    assert await quarantined(api) == [("BAD_TOPIC_FORMAT", data)]
    assert await status(api, command) == "sent"


@pytest.mark.parametrize("repeated", [{"attempt": 2}, {"called_before": True}])
async def test_a_verdict_on_an_answer_stands_on_redelivery(
    api: Caller, repeated: dict[str, Any]
) -> None:
    """Redelivered, or handed over or redriven with attempt 1 again."""
    first, second = await create(api), await create(api)
    applied, refused = ack(1, first, "succeeded"), ack(2, second, "succeeded")
    await api.deliver(apply_ack, applied)
    await api.ask(devices.revoke_device, **DEVICE)
    await api.deliver(apply_ack, refused)
    await api.deliver(apply_ack, replace(applied, **repeated))
    await api.ask(devices.reactivate_device, **DEVICE)
    await api.deliver(apply_ack, replace(refused, **repeated))
    assert [reason for reason, _ in await quarantined(api)] == ["DEVICE_REVOKED"]
    assert [await status(api, each) for each in (first, second)] == ["succeeded", "sent"]


async def test_no_device_answers_for_another(api: Caller) -> None:
    command = await create(api)
    other = {"tenant_id": "test", "device_id": "d2", "site_id": "s1", "provision_token": "tok"}
    api.settings = devices.DeviceSettings(min_token_length=3)
    await api.ask(devices.register_device, **other)
    answer = ack(1, command, "succeeded")
    answer.subject = "commands.test.d2.ack"
    await api.deliver(apply_ack, answer)
    assert [reason for reason, _ in await quarantined(api)] == ["UNKNOWN_COMMAND"]
    assert await status(api, command) == "sent"


async def test_whole_floats_beyond_64_bits_reach_the_device_and_come_back(api: Caller) -> None:
    arguments = {"a": 1e20, "b": [1e23], "c": 2**63 - 1}
    command = await create(api, command_id="whole", arguments=arguments)
    assert (command.status, command.arguments) == ("sent", arguments)
    [(_, message)] = api.outbox.sent
    assert json.loads(message)["arguments"] == arguments
    assert (await create(api, command_id="whole", arguments=arguments)).arguments == arguments
    await api.deliver(apply_ack, ack(1, command, "succeeded", result={"x": 1e20}))
    found = await api.ask(get_command, **DEVICE, command_id="whole")
    assert found.result == found.answers[0].result == {"x": 1e20}
    assert isinstance(found.result["x"], float)
