"""The list of the first documents' commands is complete, and its judge notices what differs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documentation import ROOT
from tools.seeds.documents import Difference, Expectation, read_documents, split_commands
from tools.seeds.judging import Verdict, judge
from tools.seeds.places import Places
from tools.seeds.report import COLUMNS, draw, summarize
from tools.seeds.shell import Shell

DOCUMENTS = read_documents()
DECISION = ROOT / "docs" / "decisions" / "0021-first-documents.md"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(places(tmp_path))


def places(folder: Path) -> Places:
    return Places(folder, nats=1, monitor=2, mqtt=3, admin=4, environment={"NAME": "value"})


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_something_is_expected_of_every_command_of_every_document() -> None:
    assert [len(list(document.pairs())) for document in DOCUMENTS] == [4, 6, 3, 36, 3]


def test_every_command_shows_something_or_has_an_effect() -> None:
    silent = [
        command
        for document in DOCUMENTS
        for command, expected in document.pairs()
        if not expected.shows and expected.effect is None
    ]

    # It sets a variable.
    assert [command[:9] for command in silent] == ["NATS_BOX="]


def test_the_decision_gives_every_difference_and_remark() -> None:
    text = squeezed(DECISION.read_text("utf-8"))
    expectations = [each for document in DOCUMENTS for each in document.expectations]
    reasons = {squeezed(each.differs.why) for each in expectations if each.differs}
    notes = {squeezed(each.note) for each in expectations if each.note}

    assert [reason for reason in reasons | notes if reason not in text] == []


def test_a_command_more_or_less_than_expected_is_noticed() -> None:
    document = DOCUMENTS[0]
    for commands, named in (
        ((*document.commands, "nats more"), "nothing is expected of: nats more"),
        (document.commands[:-1], "has no command 'mosquitto_pub"),
        (("nats other", *document.commands[1:]), "not: nats other"),
    ):
        with pytest.raises(ValueError, match=named):
            list(type(document)("T", commands, document.expectations).pairs())


def test_a_block_is_lines_loops_and_continued_lines_or_one_script() -> None:
    block = "# one\nls\n\nfor i in 1 2; do\n  ls $i\ndone\nls \\\n  -l\n"

    assert split_commands(block) == ["ls", "for i in 1 2; do\n  ls $i\ndone", "ls \\\n  -l"]
    assert split_commands("#!/bin/sh\nls\nls\n") == ["#!/bin/sh\nls\nls\n"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("nats --server nats://nats:4222 rtt", "nats --server nats://127.0.0.1:1 rtt"),
        ("nats --server nats://iot-nats:4222", "nats --server nats://127.0.0.1:1"),
        ("curl http://10.0.0.248:8222/varz", "curl http://127.0.0.1:2/varz"),
        ("mosquitto_pub -h localhost -p 1883 -t t", "mosquitto_pub -h 127.0.0.1 -p 3 -t t"),
        ("curl http://localhost:8081/metrics", "curl http://127.0.0.1:4/metrics"),
    ],
)
def test_addresses_become_those_of_the_host(tmp_path: Path, command: str, expected: str) -> None:
    assert places(tmp_path).translate(command) == expected


def difference(instead: str, *, fails: str = "no such") -> Difference:
    return Difference(why="it is so", fails=fails, instead=instead)


@pytest.mark.parametrize(
    ("expected", "outcome"),
    [
        ({"run": "echo one", "shows": "^one$"}, "pass"),
        ({"run": "echo one", "shows": "two"}, "fails"),
        ({"run": "echo one; exit 3", "shows": "one"}, "fails"),
        ({"run": "echo no such >&2", "shows": "x", "differs": difference("echo x")}, "differs"),
        ({"run": "echo no such", "shows": "x", "differs": difference("echo y")}, "fails"),
        ({"run": "echo fine", "shows": "x", "differs": difference("echo x")}, "fails"),
        ({"run": "cat", "effect": {"run": "echo $NAME", "shows": "value"}}, "pass"),
        ({"run": "echo a; sleep 600", "shows": "a", "listens": True}, "pass"),
        ({"run": "echo >> runs; wc -l < runs", "shows": "3", "again": True}, "pass"),
        ({"run": "echo a", "shows": "b", "listens": True}, "fails"),
        (
            {
                "run": "echo Subscribing on x; until [ -f told ]; do :; done; cat told; sleep 600",
                "shows": "told you",
                "listens": True,
                "publish": "echo told you > new; mv new told",
            },
            "pass",
        ),
    ],
)
def test_a_command_passes_differs_or_fails(
    shell: Shell, expected: dict[str, object], outcome: str
) -> None:
    expectation = Expectation.model_validate(expected)

    verdict = judge(expectation.run, expectation, shell, shell)

    assert verdict.outcome == outcome, verdict
    assert bool(verdict.reason) == (outcome == "fails")


def test_no_line_is_wider_than_a_terminal() -> None:
    verdicts = [
        Verdict(command, "differs" if expected.differs else "pass", expected)
        for document in DOCUMENTS
        for command, expected in document.pairs()
    ]
    failed = Verdict("x " * 99, "fails", verdicts[0].expectation, "because " * 20, "y" * 999)
    lines = "\n".join(map(draw, [*verdicts, failed])).splitlines()

    assert max(map(len, lines)) <= COLUMNS
    assert summarize([*verdicts, failed]).endswith("differ as decided, 1 fails.")


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.seeds"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("These programs are needed: bash, curl, grep, jq, watch")
    assert max(map(len, done.stdout.splitlines())) <= COLUMNS
