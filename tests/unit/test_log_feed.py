import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from runtime.observe import log_feed
from runtime.observe.log_feed import LONGEST_LINE, QUEUE_LINES, LogFeed, LogFilter, leveled_logger
from runtime.observe.logs import configure_logs, get_logger

DEBUG, INFO, ERROR = logging.DEBUG, logging.INFO, logging.ERROR


@pytest.fixture
def feed() -> LogFeed:
    """A feed of its own, of a process that writes INFO."""
    feed = LogFeed()
    feed.configure(INFO, lambda _level: None)
    return feed


def log(feed: LogFeed, event: str, level: str = "info", **fields: Any) -> bool:
    """Pass an entry to the feed; return whether the process itself writes it."""
    try:
        feed(None, "", {"event": event, "level": level, "timestamp": "2026-01-01", **fields})
    except structlog.DropEvent:
        return False
    return True


def texts(lines: list[log_feed.Line]) -> list[str]:
    return [json.loads(line)["event"] for _, line in lines]


def test_a_new_listener_gets_the_last_lines_that_pass_its_filter(feed: LogFeed) -> None:
    log(feed, "one", function="ingest")
    log(feed, "two", function="deliver")
    log(feed, "three")
    log(feed, "four", "error", function="ingest")
    log(feed, "five", function="ingest")

    assert texts(feed.listen("a", LogFilter(INFO), last=3)) == ["three", "four", "five"]
    assert texts(feed.listen("b", LogFilter(INFO, "ing*"), last=2)) == ["four", "five"]
    assert texts(feed.listen("c", LogFilter(ERROR), last=9)) == ["four"]
    assert feed.listen("c", LogFilter(ERROR), last=9) == []


def test_lines_since_a_time_come_in_any_number(feed: LogFeed) -> None:
    for second in range(10):
        log(feed, str(second), timestamp=f"2026-01-01T00:00:0{second}")

    found = feed.listen("a", LogFilter(INFO), last=0, since="2026-01-01T00:00:07")

    assert texts(found) == ["7", "8", "9"]


def test_a_listener_below_the_own_level_gets_what_the_process_does_not_write(
    feed: LogFeed,
) -> None:
    feed.listen("a", LogFilter(DEBUG, "ingest"), last=0)

    assert not log(feed, "quiet", "debug", function="ingest")
    assert not log(feed, "other", "debug", function="deliver")
    assert log(feed, "loud", function="ingest")

    lines, dropped = feed.take("a", 10)
    assert (texts(lines), dropped) == (["quiet", "loud"], 0)
    assert texts(feed.listen("b", LogFilter(DEBUG), last=9)) == ["loud"]


def test_a_flood_is_bounded_and_the_dropped_lines_are_counted(feed: LogFeed) -> None:
    feed.listen("a", LogFilter(DEBUG), last=0)
    for number in range(QUEUE_LINES + 25):
        log(feed, str(number), "debug")

    first, dropped = feed.take("a", 10)
    rest, dropped_again = feed.take("a", 10_000)

    assert (len(first), dropped) == (10, 25)
    assert (len(rest), dropped_again) == (QUEUE_LINES - 10, 0)


def test_the_memory_of_the_ring_is_bounded(feed: LogFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_feed, "RING_BYTES", 10_000)
    for number in range(100):
        log(feed, str(number), text="x" * 500)

    kept = texts(feed.listen("a", LogFilter(INFO), last=100))

    assert 10 < len(kept) < 20
    assert kept[-1] == "99"


def test_a_listener_that_is_forgotten_costs_nothing(feed: LogFeed) -> None:
    feed.listen("a", LogFilter(DEBUG), last=0)
    feed.listen("b", LogFilter(INFO), last=0)
    assert feed.least == DEBUG

    feed.forget("a")
    assert feed.least == INFO
    feed.forget("b")
    feed.forget("never")

    assert feed.take("a", 10) == ([], 0)


@pytest.mark.parametrize("field", ["exception", "anything"])
def test_a_very_large_line_is_cut(feed: LogFeed, field: str) -> None:
    log(feed, "large", "error", **{field: "x" * 1_000_000}, function="ingest")

    [(_, line)] = feed.listen("a", LogFilter(INFO), last=1)

    assert len(line) <= LONGEST_LINE
    assert json.loads(line)["event"] == "large"
    assert json.loads(line)["function"] == "ingest"


def test_many_threads_lose_no_line(feed: LogFeed) -> None:
    feed.listen("a", LogFilter(INFO), last=0)
    threads = [
        threading.Thread(target=lambda: [log(feed, "line") for _ in range(100)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lines, dropped = feed.take("a", 1000)

    assert (len(lines), dropped) == (800, 0)
    assert sorted(number for number, _ in lines) == list(range(1, 801))


def test_a_logger_that_is_in_use_obeys_a_listeners_level(feed: LogFeed) -> None:
    written = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[written], wrapper_class=leveled_logger(feed)
    ).bind(function="ingest")
    assert not logger.is_enabled_for(DEBUG)
    logger.debug("one")

    feed.listen("a", LogFilter(DEBUG), last=0)
    assert logger.is_enabled_for(DEBUG)
    logger.debug("two %d", 2)
    feed.forget("a")
    logger.debug("three")

    assert [entry["event"] for entry in written.entries] == ["two 2"]


@pytest.fixture
def configured() -> Iterator[None]:
    """The process's own logs as JSON at INFO."""
    configure_logs("INFO", "json")
    yield
    log_feed.FEED.forget("test")
    structlog.reset_defaults()


@pytest.mark.usefixtures("configured")
def test_lines_of_the_process_and_of_libraries_are_masked_as_on_the_console(
    capsys: pytest.CaptureFixture[str],
) -> None:
    feed = log_feed.FEED
    get_logger("runtime.test").info("used before")
    feed.listen("test", LogFilter(DEBUG), last=0)
    logger = get_logger("runtime.test")

    logger.debug("own", password="hunter2", url="nats://me:hunter2@x", data=b"hunter2")
    logging.getLogger("library").debug("theirs with token=hunter2xyz")
    logger.debug("failed", exc_info=ValueError("password=hunter2"))
    lines, _ = feed.take("test", 10)
    feed.forget("test")
    logger.debug("after")
    logging.getLogger("library").debug("after")

    assert texts(lines) == ["own", "theirs with token=***", "failed"]
    assert b"hunter2" not in b"".join(line for _, line in lines)
    assert b"ValueError" in lines[2][1]
    assert feed.take("test", 10) == ([], 0)
    written = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in written] == ["used before"]
