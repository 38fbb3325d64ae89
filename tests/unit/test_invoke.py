"""`runtime invoke` in this process: no server, and the real dispatcher."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from runtime import Context, Reject, Retry
from runtime.cli import invoke, main
from runtime.cli.failure import ExitCode
from tests.support.workload import behaviours

MANIFEST = """
streams:
  JOBS: {subjects: ["jobs.*.>"]}
functions:
  one: {handler: "tests.support.workload:on_event", consumer: {stream: JOBS}, retry: {delay: 2s}}
  many:
    handler: tests.support.workload:on_batch
    consumer: {stream: JOBS, durable: many, filter_subjects: [jobs.x.y]}
  ask: {handler: "tests.support.workload:on_request", endpoint: {subject: jobs-ask}}
  tick: {handler: "tests.support.workload:on_tick", schedule: {every: 1h}}
  serve: {handler: "tests.support.workload:run", service: true}
  rows:
    handler: tests.support.workload:on_event
    consumer: {stream: JOBS, durable: rows}
    uses: [postgres]
"""


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The logs are the process's: other tests read them.
    monkeypatch.setattr(invoke, "configure_logs", lambda _: None)
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "app.yaml").write_text(MANIFEST)


def _invoke(name: str, *arguments: str, act: Callable[..., Any], stdin: bytes = b"") -> Result:
    behaviours[name] = act
    with capture_logs():
        return CliRunner().invoke(main, ["invoke", name, *arguments], input=stdin)


async def _nothing(ctx: Context, *_: Any) -> None: ...


def _raising(failure: Exception) -> Callable[..., Any]:
    async def act(ctx: Context, *_: Any) -> None:
        raise failure

    return act


def _lines(done: Result) -> list[str]:
    first, *rest = done.stdout.splitlines()
    return [first.partition(", ")[0], *rest]


def test_it_shows_the_settling_what_would_be_sent_and_the_log() -> None:
    async def act(ctx: Context, event: Any) -> None:
        ctx.log.info("Working", size=len(event.data))
        await ctx.publish("out.a", b'{"n": 1}', msg_id="m1", headers={"Trace": "t1"})
        await ctx.publish_core("out.b", b"\xff\x00")

    done = _invoke("one", "--data", "abc", act=act)

    assert done.exit_code == ExitCode.DONE
    assert _lines(done) == [
        "ack",
        "Would have sent (--live sends)",
        "  publish out.a, 8 bytes, id m1",
        "    Trace: t1",
        '    {"n": 1}',
        "  publish, unconfirmed out.b, 2 bytes",
        "    2 bytes that are not text; --json has them",
        "Log",
        "  info: Working function=one stream=JOBS sequence=1 size=3",
    ]


def test_the_event_is_as_from_the_stream_with_the_subject_and_headers_that_are_given() -> None:
    seen = []

    async def act(ctx: Context, event: Any) -> None:
        seen.append((event.subject, dict(event.headers), event.data, event.stream, event.sequence))

    _invoke("one", act=act)
    _invoke("one", "--file", "-", "--subject", "jobs.a.b", "--header", "A:b", act=act, stdin=b"x")

    assert seen == [
        ("jobs.any.any", {}, b"", "JOBS", 1),
        ("jobs.a.b", {"A": "b"}, b"x", "JOBS", 1),
    ]


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (Retry("busy", delay_s=7), "nak, again in 7 s: busy at tests/unit/test_invoke.py:"),
        (Retry("later", delay_s=70), "park, again in 70 s: later at tests/unit/test_invoke.py:"),
        (Reject("NO", "never"), "dead letter NO: never at tests/unit/test_invoke.py:"),
    ],
)
def test_a_steered_failure_is_one_line_with_the_functions_own_place(
    failure: Exception, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = _invoke("one", act=_raising(failure))

    assert done.exit_code == ExitCode.FAILED
    [line] = done.stdout.splitlines()
    assert line.startswith(shown.rpartition(" at ")[0])
    assert "test_invoke.py:" in line


def test_any_other_failure_shows_its_traceback_too() -> None:
    done = _invoke("one", act=_raising(ValueError("bad\x1b[2J")))

    assert done.exit_code == ExitCode.FAILED
    first, title, *trace = done.stdout.splitlines()
    assert first.startswith("nak, again in 2 s: ValueError: bad\\x1b[2J at ")
    assert title == "Traceback"
    assert trace[-1] == "  ValueError: bad\\x1b[2J"


def test_an_endpoint_shows_its_reply_or_the_error_that_a_caller_would_get() -> None:
    async def act(ctx: Context, event: Any) -> dict[str, int]:
        if event.data.number == 13:
            raise Reject("NO", "not this one", status=409)
        return {"double": 2 * event.data.number}

    answered = _invoke("ask", "--data", '{"number": 4}', act=act)
    empty = _invoke("ask", act=act)
    refused = _invoke("ask", "--data", '{"number": 13}', act=act)
    misfit = _invoke("ask", "--data", '{"number": "x"}', act=act)

    assert (answered.exit_code, _lines(answered)) == (0, ["answered", "Reply", '  {"double":8}'])
    assert _lines(empty)[2] == '  {"double":0}'
    assert (refused.exit_code, _lines(refused)[0]) == (ExitCode.FAILED, "error 409 NO")
    assert '"detail": "not this one"' in refused.stdout
    assert _lines(misfit)[0] == "error 422 PAYLOAD_INVALID"


def test_a_batch_gets_all_payloads_and_shows_what_becomes_of_each() -> None:
    async def act(ctx: Context, batch: Any) -> None:
        batch.reject(batch[1], "NO", "never")

    done = _invoke("many", "--data", "a", "--data", "b", act=act)

    assert done.exit_code == ExitCode.FAILED
    first, *rest = done.stdout.splitlines()
    assert first.startswith("2 messages in one call, ")
    assert rest == ["1: ack", "2: dead letter NO: never"]


def test_a_schedule_gets_a_tick_that_is_due_now() -> None:
    seen = []

    async def act(ctx: Context) -> None:
        seen.append(ctx.due_at)

    assert _invoke("tick", act=act).exit_code == ExitCode.DONE
    assert seen[0] is not None


def test_one_json_object_has_everything_in_full() -> None:
    async def act(ctx: Context, event: Any) -> None:
        await ctx.publish("out", b"\xff", msg_id="m1")
        ctx.log.warning("Odd", kind="x")
        raise ValueError("bad")

    done = _invoke("one", "--json", act=act)
    document = json.loads(done.stdout)

    assert done.exit_code == ExitCode.FAILED
    assert (document["failed"], document["error_type"]) == (True, "ValueError")
    [settled] = document["settled"]
    assert (settled["action"], settled["delay_s"], settled["reason"]) == ("nak", 2.0, "bad")
    assert [each["base64"] for each in document["sent"]] == ["/w=="]
    assert [(each["level"], each["event"]) for each in document["logs"]] == [("warning", "Odd")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("serve", "function serve: a service takes no event; serve it: `runtime serve`"),
        ("on", "function on: no manifest in manifests has it; "),
        ("one --data a --data b", "function one: it takes one event in a call; give one --data"),
        ("one --data a --from-dlq 1", "Give one of --data, --file, --from-stream and --from-dlq."),
        ("one --live --remote", "--live has no effect with --remote"),
        ("one --from-stream JOBS", "'JOBS' is not a stream and a sequence, such as ORDERS:17"),
        ("one --subject jobs.*", "'jobs.*' has a wildcard; a message has one subject"),
        ("one --header Trace", "'Trace' is not a header, such as Trace:t1"),
        ("one -m nowhere", "nowhere: no such file or folder; name a manifest or a folder"),
        ("rows", "--live calls it with the real one"),
    ],
)
def test_what_cannot_be_called_exits_with_2_and_one_sentence(line: str, complaint: str) -> None:
    async def uses_rows(ctx: Context, event: Any) -> None:
        await ctx.postgres.execute("SELECT 1")

    name, *arguments = line.split()
    done = _invoke(name, *arguments, act=uses_rows if name == "rows" else _nothing)

    assert (done.exit_code, done.stdout) == (ExitCode.REFUSED, "")
    assert complaint in " ".join(done.stderr.split())


def test_a_start_that_fails_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "starts_badly.py").write_text(
        "from runtime import Context, Event\n"
        "async def work(event: Event[bytes], ctx: Context) -> None: ...\n"
        "async def start(ctx: Context) -> None:\n"
        "    raise ValueError('no')\n"
    )
    (tmp_path / "bad.yaml").write_text(
        "streams: {S: {subjects: [s]}}\n"
        "functions: {bad: {handler: 'starts_badly:work', consumer: {stream: S}}}\n"
    )

    done = _invoke("bad", "-m", "bad.yaml", act=_nothing)

    assert (done.exit_code, done.stdout) == (ExitCode.REFUSED, "")
    assert "function bad: its start failed: ValueError at starts_badly.py:4" in done.stderr
