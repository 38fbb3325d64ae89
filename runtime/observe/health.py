"""Health of the host: probes of its dependencies, and a watchdog of the event loop."""

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from types import FrameType

from runtime.errors import Unavailable
from runtime.observe.logs import get_logger
from runtime.observe.metrics import Metrics

log = get_logger("runtime.observe.health")

Probe = Callable[[], Awaitable[str | None]]
"""A probe passes when it returns None, and fails when it raises or returns a code."""

PROBE_TIMEOUT_S = 2.0
PROBE_CACHE_S = 0.5
TICK_S = 0.1
PEAK_WINDOW_S = 10.0
STACK_FRAMES = 30
BLOCKED_EXIT_CODE = 70
"""Exit code of a process that ended itself because its loop was blocked: EX_SOFTWARE of
sysexits.h."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one probe; `detail` is a code and holds no internals.

    `counts` is False when a failure of the probe leaves the host ready.
    """

    ok: bool
    detail: str
    counts: bool = True


class Readiness:
    """Runs all probes concurrently, each within a time limit.

    Concurrent callers, and callers within `PROBE_CACHE_S`, share one run, so that NATS and
    PostgreSQL are asked at most twice a second.

    Args:
        probes: probes by name; may grow.
        forgiven: probes whose failure is reported but leaves the host ready; may change.
        timeout_s: time limit of each probe.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        *,
        forgiven: Collection[str] = (),
        timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        self._probes = probes
        self._forgiven = forgiven
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._checks: dict[str, Check] = {}
        self._checked_s = float("-inf")

    async def checks(self) -> dict[str, Check]:
        """The results by name of the probe."""
        async with self._lock:
            clock = asyncio.get_running_loop().time
            if clock() - self._checked_s >= PROBE_CACHE_S:
                probes = dict(self._probes)  # A reload may add one meanwhile.
                found = await asyncio.gather(
                    *(self._check(name, probe) for name, probe in probes.items())
                )
                self._checks = dict(zip(probes, found, strict=True))
                self._checked_s = clock()
            return self._checks

    async def _check(self, name: str, probe: Probe) -> Check:
        try:
            async with asyncio.timeout(self._timeout_s):
                code = await probe()
        except TimeoutError:
            code = "TIMEOUT"
        except Unavailable as failure:
            log.debug("A probe found its server unavailable", probe=name, reason=failure.reason)
            code = "UNAVAILABLE"
        except Exception:
            log.warning("A probe failed", probe=name, exc_info=True)
            code = "FAILED"
        return Check(ok=code is None, detail=code or "OK", counts=name not in self._forgiven)


class LoopWatch:
    """Watchdog that measures the event loop's lag and logs what blocks the loop.

    A timer on the loop measures the lag. A thread checks the time of the timer's last beat. When
    the beat is too old, the thread reads the loop thread's stack, which still shows the blocking
    code, and logs a warning, and again each time the block has lasted twice as long. By default
    timer and thread wake up 14 times a second together.

    Args:
        metrics: gets `loop_lag_s` and `loop_blocks`.
        running: returns the name of the running function; called on the watchdog's thread during a
            block, so it may only read. The name of the running asyncio task is logged too.
        keep_alive: called on the watchdog's thread, repeatedly while the loop is blocked, with the
            seconds since the block began.
        threshold_s: the longest block that is not reported.
        limit_s: returns how long a block may last before the process is ended, at this moment; None
            for no limit. Called on the watchdog's thread.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        running: Callable[[], str] = str,
        keep_alive: Callable[[float], None] = lambda _blocked_s: None,
        threshold_s: float = 1.0,
        limit_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._metrics = metrics
        self._running = running
        self._keep_alive = keep_alive
        self._threshold_s = threshold_s
        self._poll_s = threshold_s / 4
        self._limit_s = limit_s
        self._beat_s = 0.0
        self._tick_lag_s = 0.0
        self._peaks_s = (0.0, 0.0)
        self._window_from_s = 0.0
        self._blocked_by = ""
        self._seen_beat_s = 0.0
        self._report_after_s = threshold_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    @property
    def lag_s(self) -> float:
        """The loop's lag at this moment: the delay of the last beat, or of the overdue one."""
        return max(self._tick_lag_s, time.monotonic() - self._beat_s - TICK_S, 0.0)

    def start(self) -> None:
        """Start the watchdog of the running loop, on the loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._beat_s = self._window_from_s = time.monotonic()
        self._timer = self._loop.call_later(TICK_S, self._beat)
        self._thread = threading.Thread(target=self._watch, name="loop-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the timer and the thread."""
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()

    def _beat(self) -> None:
        now_s = time.monotonic()
        lag_s = max(0.0, now_s - self._beat_s - TICK_S)
        self._beat_s = now_s
        self._tick_lag_s = lag_s
        former_s, peak_s = self._peaks_s
        if now_s - self._window_from_s > PEAK_WINDOW_S:
            self._window_from_s = now_s
            former_s, peak_s = peak_s, 0.0
        self._peaks_s = (former_s, max(peak_s, lag_s))
        self._metrics.loop_lag_s = max(self._peaks_s)
        if lag_s > self._threshold_s:
            self._metrics.loop_blocks += 1
            log.warning(
                "The event loop runs again after a block",
                blocked_s=round(lag_s, 3),
                function=self._blocked_by,
            )
        self._blocked_by = ""
        if self._loop is not None:
            self._timer = self._loop.call_later(TICK_S, self._beat)

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                self._check()
            except Exception:
                # This thread must go on, because only it reports blocks.
                log.exception("The event loop's watchdog failed once, and goes on")

    def _check(self) -> None:
        beat_s = self._beat_s
        if beat_s != self._seen_beat_s:
            self._seen_beat_s, self._report_after_s = beat_s, self._threshold_s
        blocked_s = time.monotonic() - beat_s - TICK_S
        if blocked_s > self._report_after_s and self._report(blocked_s):
            self._report_after_s = 2 * blocked_s
        if blocked_s > self._threshold_s:
            self._act_for_the_loop(blocked_s)
        limit_s = self._limit_s()
        if limit_s is not None and blocked_s > max(limit_s, self._threshold_s):
            self._end(blocked_s)

    def _act_for_the_loop(self, blocked_s: float) -> None:
        try:
            self._keep_alive(blocked_s)
        except Exception:
            log.exception("The connection could not be kept alive while the event loop was blocked")

    def _end(self, blocked_s: float) -> None:
        if self._culprit() is not None:
            log.error(
                "The event loop was blocked for too long, the process ends",
                function=self._name_running(),
                blocked_s=round(blocked_s, 3),
            )
            os._exit(BLOCKED_EXIT_CODE)

    def _culprit(self) -> FrameType | None:
        """The frame that blocks the loop's thread; None when no code of the process does."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the only door there is
        if frame is None or _is_idle(frame):
            # The whole process stood still (stopped, or starved), so no code blocks the loop.
            return None
        return frame

    def _report(self, blocked_s: float) -> bool:
        frame = self._culprit()
        if frame is None:
            return False
        stack = "".join(traceback.format_list(traceback.extract_stack(frame, STACK_FRAMES)))
        del frame
        task = asyncio.current_task(self._loop)
        self._blocked_by = self._name_running()
        log.warning(
            "A function blocks the event loop; await there, or make it a plain function",
            function=self._blocked_by,
            task=task.get_name() if task is not None else "",
            blocked_s=round(blocked_s, 3),
            stack=stack,
        )
        return True

    def _name_running(self) -> str:
        try:
            return self._running()
        except Exception:  # noqa: BLE001 - it reads what another thread is changing
            return ""


_LOOP_FILES = ("asyncio/runners.py", "asyncio/base_events.py", "runtime/process/event_loop.py")


def _is_idle(frame: FrameType) -> bool:
    """Whether the loop waits for events. uvloop waits in C, below the frame that started it."""
    if frame.f_code.co_name == "select":
        # A blocking library may use a selector too: only the loop's own selector counts as idle.
        return frame.f_back is not None and frame.f_back.f_code.co_name == "_run_once"
    return frame.f_code.co_filename.endswith(_LOOP_FILES)
