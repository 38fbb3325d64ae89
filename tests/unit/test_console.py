"""Log lines on a terminal."""

import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from rich.cells import cell_len

from runtime.observe.logs import configure_logs, get_logger
from tests.support.terminal import open_terminal, visible
from tests.unit.test_logs import restored_configuration

__all__ = ["restored_configuration"]

Draw = Callable[..., list[str]]
_END = "<the end>"


@pytest.fixture(params=[80, 100])
def width(request: pytest.FixtureRequest) -> int:
    columns: int = request.param
    return columns


@pytest.fixture
def draw(width: int) -> Iterator[Draw]:
    """The lines on a terminal of one entry."""
    with open_terminal(width) as (person, stream):

        def drawn(sentence: str, *, logger: str = "runtime.test", **fields: object) -> list[str]:
            # Here and not before: pytest gives the test's call another standard error.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sys.stderr", stream)
                configure_logs("DEBUG", "auto")
                get_logger(logger).warning(sentence, **fields)
            stream.write(_END)
            stream.flush()
            read = ""
            # A terminal hands over what it has at the moment, which may be a part of a line.
            while not read.endswith(_END):
                read += os.read(person, 65536).decode()
            return visible(read.removesuffix(_END)).splitlines()

        yield drawn


def test_an_entry_is_time_level_sentence_and_fields(draw: Draw) -> None:
    [line] = draw("Given up", function="ingest", attempts=3, reason="no such site")

    assert re.fullmatch(
        r'\d\d:\d\d:\d\d WARN  ingest: Given up  attempts=3  reason="no such site"', line
    )


def test_the_time_is_that_of_the_persons_clock(draw: Draw) -> None:
    [line] = draw("Ready")

    shown = datetime.strptime(line.split()[0], "%H:%M:%S").replace(tzinfo=UTC)
    local = datetime.now().astimezone()
    assert abs((shown.hour * 60 + shown.minute) - (local.hour * 60 + local.minute)) <= 1


def test_what_is_too_long_goes_on_below_the_sentence(draw: Draw, width: int) -> None:
    lines = draw(
        "JetStream refused what the manifest says of a stream",
        function="http_gateway",
        reason="the number of replicas must not exceed that of the nodes of the cluster",
        wanted=list(range(20)),
    )

    assert len(lines) > 1
    assert max(map(len, lines)) <= width
    assert all(line.startswith(" " * 15) and line[15] != " " for line in lines[1:])
    words = " ".join(lines).split()
    assert words[:2] == [lines[0].split()[0], "WARN"]
    assert 'reason="the' in words
    assert 'cluster"' in words


def test_a_word_that_is_longer_than_a_line_is_broken_at_its_separators(
    draw: Draw, width: int
) -> None:
    path = "/".join(["folder"] * 40)
    lines = draw("Unreadable", path=path, subject="x" * 300)

    assert max(map(len, lines)) <= width
    joined = "".join(line[15:] if number else line for number, line in enumerate(lines))
    assert f"path={path}" in joined
    assert "x" * 300 in joined
    assert lines[0].endswith("path=folder/folder/") or lines[1].endswith("/")


def test_wide_characters_count_as_two_columns(draw: Draw, width: int) -> None:
    lines = draw("Greeted", name="名前" * 60)

    assert max(map(cell_len, lines)) <= width


def test_nothing_in_a_field_reaches_the_terminal_as_a_command(draw: Draw) -> None:
    lines = draw("Refused", subject="a\x1b[2Jb", **{"odd\x07": "c\nd"})

    assert "a\\x1b[2Jb" in " ".join(lines)
    assert "odd\\x07=c\\nd" in " ".join(lines)


def test_the_hosts_own_loggers_are_left_out_and_others_are_named(draw: Draw) -> None:
    assert "logger" not in draw("Ready", logger="runtime.host")[0]
    assert "logger" not in draw("Ready", logger="ingest", function="ingest")[0]
    assert draw("Lost", logger="nats.client")[0].endswith("Lost  logger=nats.client")


def test_colours_are_left_out_on_request(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with open_terminal(width) as (person, stream):
        monkeypatch.setattr("sys.stderr", stream)
        configure_logs("INFO", "auto")
        get_logger("runtime.plain").error("Failed", function="one")

        assert b"\x1b" not in os.read(person, 65536)
