"""Commands on a real database: created, sent, answered, cancelled, timed out."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from functions.commands import acks, creating
from functions.commands.acks import AckSettings, apply_ack
from functions.commands.command import Command
from functions.commands.creating import CommandSettings, create_command
from functions.commands.endpoints import (
    cancel_command,
    get_command,
    list_commands,
    mark_commands_sent,
)
from functions.commands.rates import Rate
from functions.domain.downlinks import send_open_commands
from functions.management import device_tokens, devices, tenants
from runtime import Message, Reject
from runtime.loader.payload import encode
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller, stored
from tests.support.commands import tend

DEVICE = {"tenant_id": "test", "device_id": "d.1"}


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=8)
    caller = Caller(pool, settings=device_tokens.DeviceSettings(min_token_length=3))
    long_since = {"starts_at": "2000-01-01T00:00:00Z"}
    await caller.ask(tenants.create_tenant, tenant_id="test", subscription=long_since)
    await caller.ask(devices.register_device, **DEVICE, site_id="s1", provision_token="tok")
    caller.settings = CommandSettings()
    yield caller
    await pool.close()


async def create(api: Caller, **fields: Any) -> Command:
    return await api.ask(create_command, **{**DEVICE, "name": "reboot", **fields})


async def report(api: Caller, *commands: Command) -> None:
    """A door's report that it has handed over these commands."""
    named = [{**DEVICE, "command_id": each.command_id} for each in commands]
    await api.ask(mark_commands_sent, commands=named)


async def create_sent(api: Caller, **fields: Any) -> Command:
    command = await create(api, **fields)
    await report(api, command)
    return command


async def outbox(api: Caller, queue: str) -> list[tuple[str, dict[str, Any]]]:
    """Subject and content of what waits to be published."""
    rows = await api.pool.fetch(
        "SELECT subject, body FROM delivery_outbox WHERE queue = $1 ORDER BY outbox_id",
        f"test/{queue}",
    )
    return [(row["subject"], json.loads(row["body"])) for row in rows]


async def sends(api: Caller) -> list[str]:
    """The commands that were sent, in this order."""
    return [content["command_id"] for _, content in await outbox(api, "downlinks")]


async def events(api: Caller) -> list[tuple[str, str, int]]:
    """The events so far: command, status and version."""
    payloads = [content["payload"] for _, content in await outbox(api, "events")]
    return [(each["command_id"], each["status"], each["version"]) for each in payloads]


async def pass_time(api: Caller, seconds: int) -> None:
    """As if so much time had passed for every command, and everything was published."""
    await api.pool.execute("DELETE FROM delivery_outbox WHERE queue = 'test/downlinks'")
    await api.pool.execute(
        "UPDATE device_commands SET next_send_at = next_send_at - make_interval(secs => $1),"
        " sent_at = sent_at - make_interval(secs => $1),"
        " expires_at = expires_at - make_interval(secs => $1)",
        float(seconds),
    )
    await tend(api)


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


async def test_a_command_is_handed_to_the_downlink_in_the_transaction_that_stores_it(
    api: Caller,
) -> None:
    command = await create(api, arguments={"delay_s": 5})
    assert (command.status, command.sends, command.sent_at) == ("queued", 1, None)
    [(subject, content)] = await outbox(api, "downlinks")
    assert subject == f"downlinks.test.d//1.commands.{command.command_id}"
    assert content == {
        "command_id": command.command_id,
        "name": "reboot",
        "arguments": {"delay_s": 5},
        "expires_at": command.expires_at.isoformat(),
        "timeout_s": 300,
    }


async def test_a_command_is_sent_when_a_door_says_so(api: Caller) -> None:
    command, other = await create(api), await create(api)
    for _ in range(2):
        await report(api, command)
    shown = await api.ask(get_command, **DEVICE, command_id=command.command_id)
    assert (shown.status, await status(api, other)) == ("sent", "queued")
    assert shown.sent_at is not None
    await api.deliver(apply_ack, ack(1, other, "acked"))
    await report(api, other)
    assert await status(api, other) == "acked"


async def test_an_unanswered_command_is_sent_again_at_growing_intervals(api: Caller) -> None:
    command = await create(api)
    await pass_time(api, 4)
    assert await sends(api) == []
    for wait_s in (2, 15, 30, 60, 120, 300, 300):
        await pass_time(api, wait_s)
        assert await sends(api) == [command.command_id]
    shown = await api.ask(get_command, **DEVICE, command_id=command.command_id)
    assert (shown.status, shown.sends) == ("queued", 8)


async def test_a_sent_command_rests_and_is_sent_again(api: Caller) -> None:
    command = await create_sent(api)
    await pass_time(api, 29)
    assert await sends(api) == []
    await pass_time(api, 2)
    assert await sends(api) == [command.command_id]


async def test_what_is_sent_again_says_when_it_times_out(api: Caller) -> None:
    await create_sent(api, timeout_s=120)
    await pass_time(api, 31)
    [(_, content)] = await outbox(api, "downlinks")
    timed_out_at = await api.pool.fetchval(
        "SELECT sent_at + make_interval(secs => timeout_s) FROM device_commands"
    )
    assert (content["expires_at"], content["timeout_s"]) == (timed_out_at.isoformat(), 120)


async def test_what_is_answered_cancelled_or_expired_is_not_sent_again(api: Caller) -> None:
    acked, cancelled, expired = [await create(api) for _ in range(3)]
    await api.deliver(apply_ack, ack(1, acked, "acked"))
    await api.ask(cancel_command, **DEVICE, command_id=cancelled.command_id)
    await api.pool.execute(
        "UPDATE device_commands SET expires_at = now() + interval '10 seconds'"
        " WHERE command_id = $1",
        expired.command_id,
    )
    for _ in range(5):
        await pass_time(api, 600)
        assert await sends(api) == []
    assert await status(api, expired) == "expired"


async def test_a_command_near_its_end_is_not_sent_after_it(api: Caller) -> None:
    await create(api, expires_in_s=4)
    assert await api.pool.fetchval("SELECT count(next_send_at) FROM device_commands") == 0


async def test_several_hosts_send_a_due_command_once(api: Caller) -> None:
    made = [(await create(api)).command_id for _ in range(20)]
    await api.pool.execute("DELETE FROM delivery_outbox")
    await api.pool.execute("UPDATE device_commands SET next_send_at = now()")
    await asyncio.gather(*(tend(api) for _ in range(4)))
    assert sorted(await sends(api)) == sorted(made)


async def test_copies_do_not_pile_up_while_nothing_is_published(api: Caller) -> None:
    await create(api)
    await api.pool.execute("UPDATE delivery_outbox SET stored_at = now() - interval '1 minute'")
    await api.pool.execute("UPDATE device_commands SET next_send_at = now()")
    await tend(api)
    assert len(await sends(api)) == 1


async def test_the_commands_of_a_device_that_connects_are_sent_at_once(api: Caller) -> None:
    waiting, sent, acked = [await create(api) for _ in range(3)]
    await report(api, sent)
    await api.deliver(apply_ack, ack(1, acked, "acked"))
    await api.pool.execute("DELETE FROM delivery_outbox")
    await send_open_commands(api.pool, [("test", "d.1"), ("test", "nobody")])
    await tend(api)
    assert await sends(api) == [waiting.command_id, sent.command_id]


async def test_a_command_does_not_end_before_the_answers_are_applied_that_came_in_time(
    api: Caller,
) -> None:
    queued, sent = await create(api), await create_sent(api, timeout_s=60)
    await api.pool.execute("UPDATE device_commands SET expires_at = now() - interval '1 minute'")
    await api.pool.execute(
        "UPDATE device_commands SET sent_at = now() - interval '2 minutes' WHERE status = 'sent'"
    )
    # An answer waits that is older than the commands' ends.
    await tend(api, datetime.now(UTC) - timedelta(minutes=2))
    assert [await status(api, each) for each in (queued, sent)] == ["queued", "sent"]
    await api.deliver(apply_ack, ack(1, sent, "succeeded"))
    # And one that came after them.
    await tend(api, datetime.now(UTC))
    assert [await status(api, each) for each in (queued, sent)] == ["expired", "succeeded"]


async def test_every_transition_is_one_event(api: Caller) -> None:
    done = await create(api, command_id="done")
    await report(api, done)
    await report(api, done)
    await api.deliver(apply_ack, ack(1, done, "acked"))
    await api.deliver(apply_ack, ack(1, done, "acked"))
    await api.deliver(apply_ack, ack(2, done, "failed", result={"code": 7}))
    await api.deliver(apply_ack, ack(3, done, "succeeded"))
    await create(api, command_id="away")
    await api.ask(cancel_command, **DEVICE, command_id="away")
    await create(api, command_id="old")
    await create_sent(api, command_id="slow", timeout_s=60)
    await api.pool.execute("UPDATE device_commands SET expires_at = now()")
    await pass_time(api, 90)
    found = await events(api)
    assert found[:6] == [
        *[("done", each, n) for n, each in enumerate(("queued", "sent", "acked", "failed"), 1)],
        *[("away", each, n) for n, each in enumerate(("queued", "cancelled"), 1)],
    ]
    assert sorted(found[6:], key=lambda event: (event[0], event[2])) == [
        *[("old", each, n) for n, each in enumerate(("queued", "expired"), 1)],
        *[("slow", each, n) for n, each in enumerate(("queued", "sent", "timed_out"), 1)],
    ]
    subject, event = (await outbox(api, "events"))[3]
    assert subject == "device_events.test.d//1.commands.state"
    assert (event["tenant_id"], event["device_id"], event["kind"]) == (
        *("test", "d.1"),
        "commands/state",
    )
    assert event["payload"]["result"] == {"code": 7}


async def test_in_order_the_next_command_waits_for_the_end_of_the_one_before(api: Caller) -> None:
    first, second, third = [await create(api, in_order=True) for _ in range(3)]
    free = await create(api)
    assert (second.status, second.sends) == ("queued", 0)
    assert await sends(api) == [first.command_id, free.command_id]
    await report(api, first)
    await api.deliver(apply_ack, ack(1, first, "acked"))
    await pass_time(api, 3)
    assert await sends(api) == []
    await api.deliver(apply_ack, ack(2, first, "failed"))
    assert await sends(api) == [second.command_id]
    await api.ask(cancel_command, **DEVICE, command_id=second.command_id)
    assert await sends(api) == [second.command_id, third.command_id]
    await pass_time(api, 86_400)
    fourth = await create(api, in_order=True)
    assert (await status(api, third), fourth.sends) == ("expired", 1)


async def test_in_order_a_command_follows_one_that_has_timed_out(api: Caller) -> None:
    await create_sent(api, in_order=True, timeout_s=60)
    second = await create(api, in_order=True)
    await pass_time(api, 61)
    assert await sends(api) == [second.command_id]


async def test_in_order_a_cancelled_command_in_the_middle_lets_none_pass(api: Caller) -> None:
    first, second, third = [await create(api, in_order=True) for _ in range(3)]
    await api.ask(cancel_command, **DEVICE, command_id=second.command_id)
    assert await sends(api) == [first.command_id]
    await api.deliver(apply_ack, ack(1, first, "succeeded"))
    assert await sends(api) == [first.command_id, third.command_id]


async def test_in_order_one_command_at_a_time_is_under_way_however_they_race(api: Caller) -> None:
    made = await asyncio.gather(*(create(api, in_order=True) for _ in range(12)))
    order: list[str] = []
    for number in range(1, len(made) + 1):
        await tend(api)
        found = await sends(api)
        assert len(found) == number
        order.append(found[-1])
        await asyncio.gather(
            api.deliver(apply_ack, ack(number, found[-1], "succeeded")),
            tend(api),
        )
    assert sorted(order) == sorted(each.command_id for each in made)


async def test_a_repeated_request_makes_and_sends_one_command(api: Caller) -> None:
    first = await create(api, command_id="mine")
    assert await create(api, command_id="mine") == first
    assert await sends(api) == ["mine"]


WANTED = {
    "command_id": "mine",
    "name": "run",
    "arguments": {"a": 1, "b": [True, 1e20, -0.0, 0.1]},
    "expires_in_s": 60,
    "timeout_s": 90,
    "in_order": True,
}


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("name", "walk"),
        ("arguments", {"a": True, "b": [True, 1e20, -0.0, 0.1]}),
        ("arguments", {"a": 1}),
        ("expires_in_s", 61),
        ("timeout_s", 300),
        ("in_order", False),
    ],
)
async def test_another_request_with_the_id_of_a_command_is_refused_by_what_differs(
    api: Caller, field: str, other: object
) -> None:
    first = await create(api, **WANTED)
    assert await create(api, **WANTED) == first
    with pytest.raises(Reject) as refused:
        await create(api, **{**WANTED, field: other})
    assert (refused.value.code, refused.value.status) == ("COMMAND_EXISTS", 409)
    assert refused.value.reason == (f"The device has a command with this id and another {field}.")
    assert await sends(api) == ["mine"]


async def test_the_id_of_a_command_is_its_devices_own(api: Caller) -> None:
    other = {"tenant_id": "test", "device_id": "d2"}
    api.settings = device_tokens.DeviceSettings(min_token_length=3)
    await api.ask(devices.register_device, **other, site_id="s1", provision_token="tok")
    api.settings = CommandSettings()
    mine = await create(api, command_id="c1")
    theirs = await create(api, **other, command_id="c1", name="other")
    await api.deliver(apply_ack, ack(1, mine, "succeeded", result=1))
    shown = await api.ask(get_command, **other, command_id="c1")
    assert (theirs.device_id, shown.status, shown.answers) == ("d2", "queued", [])


async def test_a_tenant_makes_commands_within_its_rate(api: Caller) -> None:
    api.settings = CommandSettings(rate_per_s=0.001, burst=2)
    api.state = await creating.start(api.context())
    await create(api)
    await create(api)
    assert await api.refuse(create_command, **DEVICE, name="reboot") == ("RATE_LIMITED", 429)
    await creating.stop(api.context())


async def test_a_devices_answers_beyond_its_rate_are_quarantined(api: Caller) -> None:
    command = await create(api)
    api.settings = AckSettings(rate_per_s=0.001, burst=1)
    api.state = await acks.start(api.context())
    forged = ack(1, command, "acked", provision_token="no")
    for message in (forged, ack(2, command, "acked"), ack(3, command, "succeeded")):
        await api.deliver(apply_ack, message)
    reasons = [reason for reason, _ in await quarantined(api)]
    assert reasons == ["TOKEN_INVALID", "RATE_LIMITED"]
    assert await status(api, command) == "acked"
    # What was moved aside in a flood comes late and may be repeated; it has the same rate.
    for number in (4, 5):
        aside = replace(ack(1, command, "succeeded"), sequence=number, called_before=True)
        await api.deliver(apply_ack, aside)
    reasons = [reason for reason, _ in await quarantined(api)]
    assert reasons == ["TOKEN_INVALID", "RATE_LIMITED", "RATE_LIMITED"]
    assert await status(api, command) == "succeeded"
    await acks.stop(api.context())


async def test_hosts_keep_a_rate_together(api: Caller) -> None:
    hosts = [Rate("commands", 1, 10, api.context()) for _ in range(2)]
    # Hosts share what they take now; this now lasts as long as the test.
    now_ns = time.time_ns() + 600 * 10**9

    def take(tokens: int) -> int:
        """How many of so many tokens each host gives, together."""
        return sum(host.take(("test",), now_ns) for host in hosts for _ in range(tokens))

    async def share() -> None:
        for host in (*hosts, *hosts):
            await host.sharing.share()

    await share()
    # At once each host has the whole burst; what they gave out too much is a debt.
    assert take(8) == 16
    await share()
    assert take(2) <= 2
    await share()
    assert take(8) == 0


async def test_unknown_and_revoked_devices_get_no_command(api: Caller) -> None:
    nobody = {"tenant_id": "test", "device_id": "nobody", "name": "reboot"}
    assert await api.refuse(create_command, **nobody) == ("DEVICE_NOT_FOUND", 404)
    await api.ask(devices.revoke_device, **DEVICE)
    refusal = await api.refuse(create_command, **DEVICE, name="reboot")
    assert refusal == ("DEVICE_REVOKED", 409)
    assert await sends(api) == []


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
    waiting, unanswered, acked = [await create_sent(api) for _ in range(3)]
    await api.deliver(apply_ack, ack(1, acked, "acked"))
    queued, unsent = await create(api), await create(api)
    await api.pool.execute(
        "UPDATE device_commands SET sent_at = now() - interval '1 hour'"
        " WHERE command_id = ANY ($1)",
        [unanswered.command_id, acked.command_id],
    )
    await api.pool.execute(
        "UPDATE device_commands SET expires_at = now() WHERE command_id = $1", unsent.command_id
    )
    await tend(api)
    ended = [await status(api, each) for each in (waiting, unanswered, acked, queued, unsent)]
    assert ended == ["sent", "timed_out", "timed_out", "queued", "expired"]
    await api.deliver(apply_ack, ack(2, unanswered, "succeeded"))
    assert await status(api, unanswered) == "timed_out"
    assert await late(api, unanswered) == [("succeeded", True)]


async def test_a_page_ends_before_it_is_larger_than_a_message_may_be(api: Caller) -> None:
    made = [(await create(api, arguments={"text": "x" * 8000})).command_id for _ in range(110)]
    cursor, found, pages = None, [], 0
    while pages == 0 or cursor is not None:
        page = await api.ask(list_commands, **DEVICE, limit=500, cursor=cursor)
        assert len(page.model_dump_json()) < 800_000
        found += [command.command_id for command in page.items]
        cursor, pages = page.next_cursor, pages + 1
    assert (found, pages) == (made[::-1], 2)


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
    assert await status(api, command) == "queued"


async def test_a_message_on_another_topic_than_answers_is_refused(api: Caller) -> None:
    command = await create(api)
    envelope = {
        "topic": "tenant/test/device/d.1/telemetry",
        "payload": {"command_id": command.command_id, "provision_token": "tok"},
    }
    data = json.dumps(envelope).encode()
    await api.deliver(apply_ack, stored("commands.test", data, 1, stream="COMMANDS"))
    assert await quarantined(api) == [("BAD_TOPIC_FORMAT", data)]
    assert await status(api, command) == "queued"


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
    assert [await status(api, each) for each in (first, second)] == ["succeeded", "queued"]


async def test_no_device_answers_for_another(api: Caller) -> None:
    command = await create(api)
    other = {"tenant_id": "test", "device_id": "d2", "site_id": "s1", "provision_token": "tok"}
    api.settings = device_tokens.DeviceSettings(min_token_length=3)
    await api.ask(devices.register_device, **other)
    answer = ack(1, command, "succeeded")
    answer.subject = "commands.test.d2.ack"
    await api.deliver(apply_ack, answer)
    assert [reason for reason, _ in await quarantined(api)] == ["UNKNOWN_COMMAND"]
    assert await status(api, command) == "queued"


async def test_whole_floats_beyond_64_bits_reach_the_device_and_come_back(api: Caller) -> None:
    arguments = {"a": 1e20, "b": [1e23], "c": 2**63 - 1}
    command = await create(api, command_id="whole", arguments=arguments)
    assert (command.status, command.arguments) == ("queued", arguments)
    [(_, content)] = await outbox(api, "downlinks")
    assert content["arguments"] == arguments
    assert (await create(api, command_id="whole", arguments=arguments)).arguments == arguments
    await api.deliver(apply_ack, ack(1, command, "succeeded", result={"x": 1e20}))
    found = await api.ask(get_command, **DEVICE, command_id="whole")
    assert found.result == found.answers[0].result == {"x": 1e20}
    assert isinstance(found.result["x"], float)


async def test_a_command_is_shown_with_as_many_answers_as_a_message_has_room_for(
    api: Caller,
) -> None:
    command = await create_sent(api)
    shown = await api.ask(get_command, **DEVICE, command_id=command.command_id)
    assert (shown.answers, shown.has_all_answers) == ([], True)
    # 8 kB as the device writes them, and four times as many written out.
    await api.pool.execute(
        "INSERT INTO device_command_acks (tenant_id, device_id, command_id, stored_at_ns, sequence,"
        " status, result, late_ack, received_at) SELECT 'test', 'd.1', $1, n, n, 'acked',"
        " $2::text::jsonb, n > 1, now() + make_interval(secs => n) FROM generate_series(1, 100) n",
        command.command_id,
        f"[{','.join(['1e15'] * 1600)}]",
    )
    shown = await api.ask(get_command, **DEVICE, command_id=command.command_id)
    assert len(encode(shown)) < 1_000_000
    assert 10 < len(shown.answers) < 100
    assert not shown.answers[0].late_ack
    assert not shown.has_all_answers
