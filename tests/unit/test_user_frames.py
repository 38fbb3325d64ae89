import asyncio
import sys

import pytest

from runtime.call.call_task import EndedItself
from runtime.call.effects import Effects
from runtime.call.time_limit import TimeLimit
from runtime.errors import EffectNotAwaited
from runtime.observe.tracebacks import draw_traceback, plain_traceback
from runtime.user_frames import exc_info_of, format_traceback, where_of

HERE = "tests/unit/test_user_frames.py"


def fails() -> None:
    raise ValueError("password=hunter2")


async def calls_the_host_and_fails() -> None:
    fails()


async def failure_of_a_call() -> Exception:
    """A failure as the host sees it: the first frames are the host's own."""
    loop = asyncio.get_running_loop()
    with pytest.raises(ValueError, match="password") as raised:
        await TimeLimit(60).enforce(calls_the_host_and_fails(), loop.time() + 60)
    trace = raised.value.__traceback__
    assert trace is not None
    return raised.value.with_traceback(trace.tb_next)


async def test_the_function_s_own_line_is_named() -> None:
    failure = await failure_of_a_call()

    line = fails.__code__.co_firstlineno + 1
    assert where_of(failure) == f"{HERE}:{line}"


async def test_a_library_s_line_is_named_by_the_function_s_that_called_it() -> None:
    async def act() -> None:
        await asyncio.wait_for(asyncio.get_running_loop().create_future(), 0)

    with pytest.raises(TimeoutError) as raised:
        await act()

    assert where_of(raised.value) == f"{HERE}:{act.__code__.co_firstlineno + 1}"


async def test_an_effect_without_await_is_named_by_the_line_that_asked_for_it() -> None:
    effects = Effects()
    line = fails.__code__.co_firstlineno
    effects.add((asyncio.sleep(0), "publish", fails.__code__, line))

    with pytest.raises(EffectNotAwaited) as raised:
        await effects.check()
    await effects.close()

    assert where_of(raised.value) == f"{HERE}:{line}"


def test_what_ended_a_call_is_looked_for_in_its_cause() -> None:
    ended = EndedItself("the function raised SystemExit")
    with pytest.raises(SystemExit) as raised:
        sys.exit()
    ended.__cause__ = raised.value

    assert where_of(ended).startswith(f"{HERE}:")
    assert where_of(ValueError("never raised")) == ""


async def test_a_traceback_begins_in_the_function() -> None:
    failure = await failure_of_a_call()

    whole = format_traceback(failure)

    assert "enforce" not in whole
    assert "in fails" in whole
    _, _, trace = exc_info_of(failure)
    assert trace is not None
    assert trace.tb_frame.f_code is calls_the_host_and_fails.__code__


@pytest.mark.parametrize("colors", [True, False])
async def test_on_a_terminal_it_shows_the_function_s_frames_alone_and_no_secret(
    colors: bool,
) -> None:
    failure = await failure_of_a_call()

    drawn = draw_traceback((type(failure), failure, failure.__traceback__), width=80, colors=colors)

    assert "time_limit.py" not in drawn
    assert "test_user_frames.py" in drawn
    assert "***" in drawn.splitlines()[-1]
    assert "hunter2" not in drawn.splitlines()[-1]
    assert ("\x1b[" in drawn) == colors
    if not colors:
        assert max(len(line) for line in drawn.splitlines()) <= 80


async def test_a_failure_of_the_host_s_own_shows_its_frames() -> None:
    with pytest.raises(TypeError) as raised:
        await TimeLimit(60).enforce(None, 0)  # type: ignore[arg-type]
    trace = raised.value.__traceback__
    assert trace is not None

    drawn = draw_traceback((TypeError, raised.value, trace.tb_next), width=100, colors=False)

    assert "enforce" in drawn


async def test_an_exception_of_megabytes_is_cut() -> None:
    failure = ValueError("x" * 10_000_000)

    assert len(plain_traceback((ValueError, failure, None))) < 40_000
    assert len(draw_traceback((ValueError, failure, None), width=80, colors=False)) < 10_000
