"""The exit code of every command, and what it says when NATS is away. One process: no imports."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from runtime.cli import connection, main
from runtime.cli.failure import ExitCode
from tests.support.documentation import ROOT, free_port, read_table

ARGUMENTS = {
    "apply": ["app.yaml"],
    "dlq purge": ["1", "--yes"],
    "dlq redrive": ["1"],
    "dlq show": ["1"],
    "invoke": ["work", "--remote"],
    "parked cancel": ["1", "--yes"],
    "parked run-now": ["1"],
    "pause": ["work"],
    "plan": ["app.yaml"],
    "replay": ["work", "-m", "app.yaml", "--from", "1"],
    "resume": ["work"],
}
"""Of the commands that need some."""
MANIFEST = """
streams:
  JOBS: {subjects: [jobs.*]}
functions:
  work:
    handler: tests.support.workload:on_event
    consumer: {stream: JOBS}
  ask: {handler: "tests.support.workload:on_request", endpoint: {subject: ask}}
"""
SECRET = "hunter2"


def _commands(group: click.Group = main, name: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{name}{word} ")
        else:
            yield f"{name}{word}", command


ALL = dict(_commands())
TALKING = sorted(
    name
    for name, command in ALL.items()
    if any(parameter.name == "nats_url" for parameter in command.params)
    and name != "top"  # It needs a terminal; see tests/e2e/test_top.py.
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a manifest, as the current one; no NATS_URL, and little patience."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "CONNECT_LIMIT_S", 0.2)
    # The logs are the process's: other tests read them.
    monkeypatch.setattr(connection, "configure_logs", lambda _: None)
    for name in ("NATS_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNTIME_NATS_PORT", str(free_port()))
    (tmp_path / "app.yaml").write_text(MANIFEST)
    return tmp_path


def _run(*arguments: str) -> Result:
    with capture_logs():
        return CliRunner().invoke(main, arguments)


def test_every_command_that_lists_or_reports_has_json() -> None:
    without = {
        name
        for name, command in ALL.items()
        if not any(parameter.name == "as_json" for parameter in command.params)
    }

    # A script for a shell, a program, a JSON Schema, a process with a log, and a live screen.
    assert without == {"completion", "psql", "schema", "serve", "top"}


def test_the_table_of_exit_codes_is_the_enum() -> None:
    rows = read_table(ROOT / "docs" / "operations.md", "Exit codes")

    assert [int(row[0]) for row in rows] == list(ExitCode)


@pytest.mark.parametrize("name", TALKING)
def test_a_command_without_nats_exits_with_1_and_says_what_to_do_without_the_password(
    name: str, folder: Path
) -> None:
    url = f"nats://user:{SECRET}@127.0.0.1:{free_port()}"

    done = _run(*name.split(), *ARGUMENTS.get(name, []), "--nats-url", url)

    assert done.exit_code == ExitCode.UNAVAILABLE, done.output
    assert done.stdout == ""
    first, remedy = done.stderr.splitlines()
    assert first.startswith(f"NATS at {url.rpartition('@')[2]} is unavailable: no connection")
    assert remedy == "Check that this server runs, and the address in --nats-url or NATS_URL"
    assert SECRET not in done.output


def test_without_an_address_the_line_names_the_embedded_server_and_how_to_start_it(
    folder: Path,
) -> None:
    nowhere = _run("ls")
    (folder / ".runtime").mkdir()
    (folder / ".runtime" / "nats.password").write_text(SECRET)
    stopped = _run("ls")

    assert nowhere.exit_code == stopped.exit_code == ExitCode.UNAVAILABLE
    assert nowhere.stderr.splitlines()[1] == (
        "There is no password in .runtime/nats.password: run this where `runtime serve` runs and "
        "as its user, or set RUNTIME_DATA_DIR or NATS_URL"
    )
    assert stopped.stderr.splitlines()[1] == (
        "Start it with `runtime serve`, or name another server with --nats-url or NATS_URL"
    )
    assert SECRET not in stopped.output


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("replay work", "Missing option '--from'"),
        ("replay work --from 0", "the first sequence is 1"),
        ("replay work --from then", "'then' is not a time"),
        ("replay work --from 1 --rate fast", "'fast' is not a rate"),
        ("replay no.name --from 1", "'no.name' cannot be a function's name"),
        ("replay ask -m app.yaml --from 1", "only a function with a consumer has messages of the"),
        ("replay nope -m app.yaml --from 1", "function nope: no manifest in app.yaml has it; "),
        ("replay work -m gone --from 1", "gone: no such file or folder"),
    ],
)
def test_a_wrong_argument_exits_with_2_before_a_server_is_asked(
    line: str, complaint: str, folder: Path
) -> None:
    done = _run(*line.split())

    assert (done.exit_code, done.stdout) == (ExitCode.REFUSED, "")
    assert complaint in " ".join(done.stderr.split())


# `psql` passes what it does not know on to the program.
@pytest.mark.parametrize("name", sorted(ALL.keys() - {"psql"}))
def test_an_unknown_option_exits_with_2_and_names_the_help(name: str, folder: Path) -> None:
    done = _run(*name.split(), "--no-such-option")

    assert done.exit_code == ExitCode.REFUSED
    assert "No such option" in done.stderr
    assert f"{name} --help' for help." in done.stderr or f"{name} -h' for help." in done.stderr


@pytest.mark.parametrize("name", sorted({"", *ALL, *(name.split()[0] for name in ALL)}))
def test_every_help_fits_80_columns_and_exits_with_0(name: str, folder: Path) -> None:
    done = CliRunner().invoke(main, [*name.split(), "--help"], terminal_width=80)

    assert done.exit_code == ExitCode.DONE
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\n\n  " in done.stdout, "no sentence says what the command does"
    assert not re.search(r"^  .*\.\.\.$", done.stdout, re.MULTILINE), "a sentence is cut"
