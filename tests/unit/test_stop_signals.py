"""Signals that stop a host, and SIGHUP, which reloads it unless its terminal was closed."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
import structlog

from runtime.process.stop_signals import StopSignals


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    hang_up = signal.getsignal(signal.SIGHUP)
    yield
    for number, handler in {**former, signal.SIGHUP: hang_up}.items():
        signal.signal(number, handler)


async def _turn_after_signal() -> None:
    """Return when the loop has called the handlers of all signals sent so far."""
    seen = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, seen.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(seen.wait(), 60)
    asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)


async def test_a_terminal_that_is_gone_asks_for_a_drain_and_never_for_an_end_at_once() -> None:
    signals = StopSignals(has_terminal=True)
    signals.install()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGHUP)
        await _turn_after_signal()

    assert signals.drain.is_set()
    assert not signals.at_once.is_set()


async def test_sighup_without_a_terminal_asks_for_a_reload() -> None:
    signals = StopSignals(has_terminal=False)
    signals.install()
    reloads: list[str] = []
    os.kill(os.getpid(), signal.SIGHUP)
    await _turn_after_signal()
    signals.on_reload(lambda: reloads.append("reload"))
    os.kill(os.getpid(), signal.SIGHUP)
    await _turn_after_signal()

    # The first came while the host started, and its files may have been read before.
    assert reloads == ["reload", "reload"]
    assert not signals.drain.is_set()


async def test_sighup_on_a_terminal_that_is_open_asks_for_a_reload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leader, follower = os.openpty()
    with open(follower, closefd=False) as stream:  # noqa: ASYNC230 - a descriptor
        monkeypatch.setattr("sys.stdin", stream)
        signals = StopSignals()
        signals.install()
        reloads: list[str] = []
        signals.on_reload(lambda: reloads.append("reload"))
        os.kill(os.getpid(), signal.SIGHUP)
        await _turn_after_signal()
        is_draining_before = signals.drain.is_set()
        os.close(leader)
        os.kill(os.getpid(), signal.SIGHUP)
        await _turn_after_signal()
    os.close(follower)

    assert (reloads, is_draining_before) == (["reload"], False)
    assert signals.drain.is_set()


async def test_sighup_during_a_drain_is_refused_with_a_line() -> None:
    signals = StopSignals(has_terminal=False)
    signals.install()
    signals.on_reload(lambda: pytest.fail("it must not reload"))
    signals.stop()
    with structlog.testing.capture_logs() as lines:
        os.kill(os.getpid(), signal.SIGHUP)
        await _turn_after_signal()

    assert [line["event"] for line in lines] == ["Not reloaded: the host drains"]


async def test_a_host_that_was_started_to_ignore_sighup_goes_on_ignoring_it() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = StopSignals(has_terminal=True)
    signals.install()
    os.kill(os.getpid(), signal.SIGHUP)
    await _turn_after_signal()

    assert not signals.drain.is_set()
