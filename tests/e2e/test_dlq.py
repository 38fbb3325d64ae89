import asyncio
import base64
import json
import os
import pty
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from runtime import Context, Event, Reject
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetter, DeadLetters
from runtime.broker.streams import ensure
from runtime.manifest.model import Manifest
from runtime.message import Message, Unreadable
from tests.support.command import RUNTIME, runtime
from tests.support.host import QUICK, Journal, fresh, running_host, wait_for_letters
from tests.support.servers import NatsServer

WORK = {"handler": "some.module:handle", "consumer": {"stream": "JOBS"}}
STORED_AT_NS = 1_790_000_000_000_000_000
FAILED_AT = datetime(2026, 5, 4, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture
async def letters(broker: Broker) -> DeadLetters:
    for stream in (await broker.api("STREAM.NAMES")).get("streams") or []:
        await broker.api(f"STREAM.DELETE.{stream}")
    streams = {"JOBS": {"subjects": ["jobs.>"]}}
    manifest = {"streams": streams, "functions": {"work": WORK, "rest": WORK}}
    await ensure(broker, Manifest.model_validate(manifest))
    return DeadLetters(broker)


def _letter(sequence: int = 1, **fields: Any) -> DeadLetter:
    message = Message("jobs.a", b'{"n": 1}', {}, "", "JOBS", sequence, 5, STORED_AT_NS)
    given: dict[str, Any] = {
        "function": "work", "message": message, "code": "BAD", "reason": "it is bad",
        "attempts": 5, "failed_at": FAILED_AT,
    }  # fmt: skip
    return DeadLetter(**{**given, **fields})


async def _sequences(url: str, *filters: str) -> list[int]:
    done = await runtime(url, "dlq", "ls", "--json", *filters)
    assert done.code == 0, done.err
    return [document["stream_sequence"] for document in done.documents]


async def test_the_list_shows_one_aligned_line_for_each_dead_letter(
    nats_server: NatsServer, letters: DeadLetters
) -> None:
    await letters.store(_letter())
    long = "the device says " + "so " * 100
    await letters.store(_letter(2, function="rest", code="MAX_DELIVERIES", reason=long))

    done = await runtime(nats_server.url, "dlq", "ls")

    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "SEQ  FAILED AT             FUNCTION  CODE            ATTEMPTS  SUBJECT  REASON",
        "  1  2026-05-04 12:30:15Z  work      BAD                    5  jobs.a   it is bad",
        f"  2  2026-05-04 12:30:15Z  rest      MAX_DELIVERIES         5  jobs.a   {long.rstrip()}",
        "2 dead letters",
    ]


async def test_the_list_ends_with_the_newest_and_says_how_many_there_are(
    nats_server: NatsServer, letters: DeadLetters
) -> None:
    for sequence in range(1, 6):
        await letters.store(_letter(sequence))

    done = await runtime(nats_server.url, "dlq", "ls", "--limit", "2")

    assert [row[0] for row in done.rows] == ["SEQ", "4", "5", "the"]
    assert done.out.endswith("the newest 2 of 5 dead letters; --limit 0 shows all\n")
    assert await _sequences(nats_server.url, "--limit", "1") == [5]


async def test_filters_narrow_the_list(nats_server: NatsServer, letters: DeadLetters) -> None:
    now = datetime.now(UTC)
    await letters.store(_letter(1))
    await letters.store(_letter(2, function="rest"))
    await letters.store(_letter(3, code="WORSE"))
    await letters.store(_letter(4, failed_at=now - timedelta(minutes=30)))
    await letters.store(_letter(5, message=replace(_letter(5).message, subject="jobs.b.c")))
    url = nats_server.url

    assert await _sequences(url) == [1, 2, 3, 4, 5]
    assert await _sequences(url, "--function", "rest") == [2]
    assert await _sequences(url, "--code", "WORSE") == [3]
    assert await _sequences(url, "--since", "1h") == [4]
    assert await _sequences(url, "--since", "2026-05-04", "--until", "1h") == [1, 2, 3, 5]
    assert await _sequences(url, "--since", "2026-05-04T12:30:16+00:00") == [4]
    assert await _sequences(url, "--subject", "jobs.*", "--function", "work") == [1, 3, 4]
    assert (await runtime(url, "dlq", "ls", "--code", "NONE")).out == "No dead letters match.\n"


async def test_everything_about_one_dead_letter_is_shown(
    nats_server: NatsServer, letters: DeadLetters
) -> None:
    headers = {"Trace": "t1", "Nats-Msg-Id": "mine"}
    await letters.store(
        _letter(
            message=replace(_letter().message, headers=headers, data='{"städte": 1}'.encode()),
            error_type="ValueError",
            traceback='Traceback (most recent call last):\n  File "a.py", line 3\nValueError: é\n',
        )
    )

    done = await runtime(nats_server.url, "dlq", "show", 1)
    [document] = (await runtime(nats_server.url, "dlq", "show", 1, "--json")).documents

    lines = done.out.splitlines()
    assert lines[:6] == [
        "Dead letter 1",
        "  function   work",
        "  code       BAD",
        "  reason     it is bad",
        "  error      ValueError",
        "  attempts   5",
    ]
    assert lines[6].startswith("  failed at  2026-05-04 12:30:15Z, ")
    assert lines[7:] == [
        "  message    JOBS/1",
        "  subject    jobs.a",
        "  stored at  2026-09-21 14:13:20Z",
        "Headers",
        "  Nats-Msg-Id  mine",
        "  Trace        t1",
        "Traceback",
        "  Traceback (most recent call last):",
        '    File "a.py", line 3',
        "  ValueError: é",
        "Payload, 14 bytes",
        '  {"städte": 1}',
    ]
    assert document["headers"] == headers
    assert document["text"] == '{"städte": 1}'
    assert (document["attempts"], document["failed_at"]) == (5, "2026-05-04T12:30:15.123456Z")


async def test_bytes_that_are_no_text_are_shown_in_hexadecimal_and_given_whole_on_demand(
    nats_server: NatsServer, letters: DeadLetters
) -> None:
    data = bytes(range(256)) * 17
    await letters.store(_letter(message=replace(_letter().message, data=data)))
    url = nats_server.url

    shown = (await runtime(url, "dlq", "show", 1)).out.splitlines()
    [document] = (await runtime(url, "dlq", "show", 1, "--json")).documents

    row = "  00000040  40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f  @ABCDEFGHIJKLMNO"
    assert row in shown
    assert shown[-1] == "  and 256 bytes more: --raw gives all"
    assert base64.b64decode(document["base64"]) == data
    assert (await runtime(url, "dlq", "show", 1, "--raw")).data == data


async def test_a_message_that_nobody_can_decode_shows_every_byte(
    nats_server: NatsServer, letters: DeadLetters
) -> None:
    block = b"\x00\xffno headers"
    message = replace(
        _letter().message,
        subject="jobs.\udcff",
        unreadable=Unreadable("its headers do not begin with NATS/1.0", block),
    )
    await letters.store(_letter(message=message))
    url = nats_server.url

    listed = (await runtime(url, "dlq", "ls")).out
    shown = (await runtime(url, "dlq", "show", 1)).out
    [document] = (await runtime(url, "dlq", "show", 1, "--json")).documents

    assert "jobs.\\udcff" in listed
    assert "Header block, 12 bytes\n  00000000  00 ff 6e 6f 20" in shown
    assert document["subject"].encode("utf-8", "surrogateescape") == b"jobs.\xff"
    assert base64.b64decode(document["header_block_base64"]) == block


async def test_what_a_device_sent_cannot_command_the_terminal(
    nats_server: NatsServer, letters: DeadLetters
) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07 \u202egnp.exe [red]\r\n"
    message = replace(
        _letter().message, data=evil.encode(), headers={"X": evil}, subject="jobs.\x1b[31m"
    )
    await letters.store(_letter(message=message, reason=evil, error_type=evil, traceback=evil))

    listed = (await runtime(nats_server.url, "dlq", "ls")).out
    shown = (await runtime(nats_server.url, "dlq", "show", 1)).out

    for text in (listed, shown):
        assert {character for character in text if not character.isprintable()} == {"\n"}
        assert "\\x1b[2J" in text
        assert "[red]" in text


async def test_a_redrive_calls_the_failing_function_alone_with_all_its_attempts(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, failing, neighbour = fresh("JOBS"), fresh("failing"), fresh("neighbour")
    calls, neighbours = Journal(), Journal()
    is_mended = False

    async def fail(ctx: Context, event: Event[bytes]) -> None:
        calls.add((event.raw, event.attempt, event.sequence))
        if not is_mended:
            raise ValueError("not yet")

    async def note(ctx: Context, event: Event[bytes]) -> None:
        neighbours.add(event.raw)

    spec = {"handler": "on_event", "consumer": {"stream": stream}, "retry": QUICK}
    async with running_host(
        nats_server.url,
        {failing: spec, neighbour: spec},
        {failing: fail, neighbour: note},
        streams={stream: {"subjects": [f"{stream}.>"]}},
    ):
        await broker.publish(f"{stream}.a", b"job")
        [letter] = await wait_for_letters(broker, failing)
        is_mended = True
        done = await runtime(nats_server.url, "dlq", "redrive", letter.sequence)
        await calls.wait(4)
        again = await runtime(nats_server.url, "dlq", "redrive", letter.sequence)

    assert (done.code, done.out) == (0, "1 dead letter redriven\n")
    assert calls.entries == [(b"job", attempt, 1) for attempt in (1, 2, 3, 1)]
    assert neighbours.entries == [b"job"]
    assert (again.code, again.out) == (2, "")
    assert again.err == "No dead letters match; nothing was redriven.\n"


async def test_thousands_are_redriven_under_a_progress_bar_and_none_is_doubled(
    nats_server: NatsServer, broker: Broker, letters: DeadLetters
) -> None:
    for start in range(1, 2501, 250):
        await asyncio.gather(*(letters.store(_letter(n)) for n in range(start, start + 250)))
    await letters.store(_letter(9999, function="rest"))
    leader, follower = pty.openpty()
    shown = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(leader, lambda: shown.extend(os.read(leader, 65536)))

    process = await asyncio.create_subprocess_exec(
        RUNTIME, "dlq", "redrive", "--function", "work",
        env={"PATH": os.defpath, "NATS_URL": nats_server.url, "TERM": "xterm", "COLUMNS": "80"},
        stdout=asyncio.subprocess.PIPE, stderr=follower,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    loop.remove_reader(leader)
    os.close(leader)
    os.close(follower)

    assert (process.returncode, out) == (0, b"2,500 dead letters redriven\n")
    assert b"Redriving" in shown
    assert b"/2500" in shown
    again = await runtime(nats_server.url, "dlq", "redrive", "--function", "work")
    assert again.code == 2
    mailbox = await broker.api("STREAM.INFO.MAILBOX")
    assert mailbox["state"]["messages"] == 2500
    assert await letters.counts() == {"rest": 1}


async def test_what_fails_again_after_a_redrive_shows_its_first_failure(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, failing = fresh("JOBS"), fresh("failing")
    reasons = iter(["the first reason", "the second reason"])

    async def fail(ctx: Context, event: Event[bytes]) -> None:
        raise Reject("BAD", next(reasons))

    spec = {"handler": "on_event", "consumer": {"stream": stream}}
    async with running_host(
        nats_server.url,
        {failing: spec},
        {failing: fail},
        streams={stream: {"subjects": [f"{stream}.>"]}},
    ):
        await broker.publish(f"{stream}.a", b"job")
        [first] = await wait_for_letters(broker, failing)
        await runtime(nats_server.url, "dlq", "redrive", "--function", failing)
        [second] = await wait_for_letters(broker, failing)
        shown = await runtime(nats_server.url, "dlq", "show", second.sequence)
        [document] = (
            await runtime(nats_server.url, "dlq", "show", second.sequence, "--json")
        ).documents

    at = first.failed_at.strftime("%Y-%m-%d %H:%M:%SZ")
    lines = shown.out.splitlines()
    assert "  reason     the second reason" in lines
    assert "  redriven   1 time" in lines
    assert f"  at first   dead letter {first.sequence}, {at}, BAD: the first reason" in lines
    assert document["first_dead_letter"] == first.sequence
    assert document["first_reason"] == "the first reason"


async def test_a_redrive_takes_the_same_filters_as_the_list(
    nats_server: NatsServer, letters: DeadLetters
) -> None:
    now = datetime.now(UTC)
    await letters.store(_letter(1))
    await letters.store(_letter(2, function="rest"))
    await letters.store(_letter(3, code="WORSE"))
    await letters.store(_letter(4, failed_at=now - timedelta(minutes=30)))
    await letters.store(_letter(5, message=replace(_letter(5).message, subject="jobs.b.c")))
    url, left = nats_server.url, []

    for filters in (
        ["--code", "WORSE"],
        ["--since", "1h"],
        ["--subject", "jobs.b.>"],
        ["--function", "work", "--until", "2026-05-04T12:30:15Z"],
        ["--function", "work", "--until", "2026-05-04T12:30:16Z"],
    ):
        done = await runtime(url, "dlq", "redrive", *filters)
        left.append((done.code, await _sequences(url)))

    assert left == [(0, [1, 2, 4, 5]), (0, [1, 2, 5]), (0, [1, 2]), (2, [1, 2]), (0, [2])]


async def test_what_is_gone_already_is_said(nats_server: NatsServer, letters: DeadLetters) -> None:
    await letters.store(_letter())

    done = await runtime(nats_server.url, "dlq", "redrive", 1, 1, 7)

    assert done.code == 0
    assert done.out == "1 dead letter redriven\n1 of 2 were no longer there, or do not match\n"


async def test_a_redrive_to_a_function_that_nobody_ever_ran_is_refused_with_the_way_out(
    nats_server: NatsServer, letters: DeadLetters
) -> None:
    await letters.store(_letter(function="gone"))

    done = await runtime(nats_server.url, "dlq", "redrive", "--all")

    assert done.code == 2
    assert "function gone: it has no mailbox on this server" in done.err
    assert await letters.counts() == {"gone": 1}


async def test_a_purge_asks_and_removes_exactly_what_is_meant(
    nats_server: NatsServer, letters: DeadLetters
) -> None:
    await letters.store(_letter(1))
    await letters.store(_letter(2, code="WORSE"))
    await letters.store(_letter(3, function="rest"))
    url = nats_server.url

    silent = await runtime(url, "dlq", "purge", "--function", "work")
    refused = await runtime(url, "dlq", "purge", "--function", "work", stdin="n\n")
    assert await _sequences(url) == [1, 2, 3]
    agreed = await runtime(url, "dlq", "purge", "--code", "BAD", stdin="y\n")
    left = await _sequences(url)
    forced = await runtime(url, "dlq", "purge", "--all", "--yes")

    assert (silent.code, refused.code) == (1, 1)
    assert "Remove 2 dead letters (work 2) for good? [y/N]" in refused.err
    assert "Remove 2 dead letters (rest 1, work 1) for good?" in agreed.err
    assert (agreed.code, agreed.out) == (0, "2 dead letters removed\n")
    assert left == [2]
    assert (forced.code, forced.out) == (0, "1 dead letter removed\n")
    assert (await runtime(url, "dlq", "ls")).out == "No dead letters.\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["redrive"], "Say which: sequences, a filter such as --function, or --all."),
        (["redrive", "--all", "--code", "BAD"], "Say which"),
        (["purge"], "Say which"),
        (["ls", "--since", "soon"], "'soon' is not a time; write an age like 30m or 2d"),
        (["ls", "--function", "a.>"], "'a.>' cannot be a function's name"),
        (["ls", "--subject", "a.>.b"], "> may only be the last part"),
        (["show", "0"], "0 is not in the range x>=1"),
        (["show", "first"], "'first' is not a valid sequence."),
        (["redrive", "1-5"], "'1-5' is not a valid sequence."),
        (["show", "1", "--raw", "--json"], "exclude each other"),
        (["show", "12345"], "There is no dead letter 12345; `runtime dlq ls` lists them."),
        (["purge", "--function", "none", "--yes"], "No dead letters match; nothing was removed."),
    ],
)
async def test_a_mistake_or_nothing_to_do_exits_with_2_and_a_sentence(
    nats_server: NatsServer, letters: DeadLetters, arguments: list[str], complaint: str
) -> None:
    done = await runtime(nats_server.url, "dlq", *arguments)

    assert (done.code, done.out) == (2, "")
    assert complaint in done.err


async def test_a_server_that_is_away_exits_with_1_and_shows_no_password(
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    port = unused_tcp_port_factory()
    url = f"nats://me:very-secret@127.0.0.1:{port}"

    done = await runtime(url, "dlq", "ls")

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"NATS at 127.0.0.1:{port} is unavailable: ")
    assert done.err.count("\n") == 2
    assert "secret" not in done.err


async def test_a_server_that_never_saw_a_host_has_no_dead_letters(
    nats_server: NatsServer, broker: Broker
) -> None:
    for stream in (await broker.api("STREAM.NAMES")).get("streams") or []:
        await broker.api(f"STREAM.DELETE.{stream}")

    assert (await runtime(nats_server.url, "dlq", "ls")).out == "No dead letters.\n"
    assert json.loads((await runtime(nats_server.url, "dlq", "ls", "--json")).out or "[]") == []
    assert (await runtime(nats_server.url, "dlq", "show", 1)).code == 2
    assert (await runtime(nats_server.url, "dlq", "purge", "--all", "--yes")).code == 2
