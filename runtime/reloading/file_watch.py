"""Tells when files of a project have changed: by the system's events, or by looking again.

Directories are watched, not files, because editors save by renaming another file over the old one.
Where no events come, files are looked at several times a second. Because nobody can know in advance
that events come, the files are also looked at every two seconds: a change that had no event proves
that they do not, and from then on the files are looked at as often as there.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from runtime.observe.logs import get_logger
from runtime.reloading.watched_places import Look, WatchedPlaces, differences, has_events, look_at
from runtime.supervised_task import SupervisedTask

DEBOUNCE_MS = 50
"""The most that grouping of events adds. The default of watchfiles is 1,600 ms, and steady writes
use all of it."""
STEP_MS = 15
"""Events are passed on when none has come for so long."""
POLL_S = 0.25
CHECK_S = 2.0
EVENT_S = 0.3
"""How much later than a change its event may come."""

log = get_logger("runtime")


class FileWatch:
    """Watches the places of a project.

    Args:
        places: the places to watch now; called again after each change.
        polls: never rely on events.

    Attributes:
        polls: whether the files are looked at, because events do not come.
    """

    def __init__(self, places: Callable[[], WatchedPlaces], *, polls: bool = False) -> None:
        self._places_now = places
        self.polls = polls
        self._places = places()
        self._folders: frozenset[Path] = frozenset()
        self._is_stale = False
        self._look: Look = {}
        self._changed: set[Path] = set()
        self._heard: set[Path] = set()
        self._has_changed = asyncio.Event()
        self._announced = 0
        self._events: asyncio.Task[None] | None = None
        self._looking = SupervisedTask(self._look_again, "file watch")

    async def start(self) -> None:
        """Watch; a change after this is noticed."""
        await self._follow()
        self._looking.start()

    async def stop(self) -> None:
        """Stop watching."""
        await self._looking.stop()
        await self._stop_events()

    async def wait(self) -> frozenset[Path]:
        """Wait for a change; return the changed paths, which are the first of a burst at least."""
        await self._has_changed.wait()
        return self._take()

    async def changes_within(self, seconds: float) -> bool:
        """Whether something changes within so many seconds; the change is not taken."""
        before = self._announced
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_changed.wait(), seconds)
        return self._announced != before

    async def follow(self) -> None:
        """Watch the places as they are now, after a load may have changed them."""
        self._places = self._places_now()
        await self._follow()

    def _take(self) -> frozenset[Path]:
        taken = frozenset(self._changed)
        self._changed.clear()
        self._has_changed.clear()
        return taken

    async def _follow(self) -> None:
        folders = await asyncio.to_thread(self._places.expanded)
        is_listening = self._events is not None and not self._events.done()
        if folders == self._folders and (self.polls or (is_listening and not self._is_stale)):
            return
        is_first = not self._look
        self._folders, self._is_stale = folders, False
        if not self.polls and not all(map(has_events, folders)):
            self._poll_from_now_on("a file system without events")
        await self._stop_events()
        if not self.polls:
            self._events = asyncio.create_task(self._listen(folders), name="file events")
            await asyncio.sleep(0)  # The task has asked for events when it waits for the first.
        look = await asyncio.to_thread(look_at, folders, self._places.files)
        before, self._look = self._look, look
        if not is_first:
            # Nobody listened for a moment, and a new folder had files before it was watched.
            self._announce(differences(before, look))

    async def _stop_events(self) -> None:
        if self._events is not None:
            self._events.cancel()
            await asyncio.gather(self._events, return_exceptions=True)
            self._events = None

    async def _listen(self, folders: frozenset[Path]) -> None:
        # Not at the top: a host that watches nothing does without.
        from watchfiles import awatch  # noqa: PLC0415

        logging.getLogger("watchfiles").setLevel(logging.WARNING)  # It counts changes.
        try:
            async for events in awatch(
                *sorted(folders),
                watch_filter=None,
                debounce=DEBOUNCE_MS,
                step=STEP_MS,
                force_polling=False,
                recursive=False,
                ignore_permission_denied=True,
            ):
                self._hear({Path(path) for _, path in events})
        except FileNotFoundError:
            self._announce(folders)  # A folder is gone by now: find the others again.
        except (OSError, RuntimeError) as failure:  # Such as the system's limit of watches.
            self._poll_from_now_on(f"the system refuses: {failure}")

    def _hear(self, paths: set[Path]) -> None:
        concerned = {path for path in paths if self._places.concerns(path, self._folders)}
        self._heard |= {path.parent for path in concerned} | concerned
        # A folder that was deleted and made again is another folder to the system.
        self._is_stale = self._is_stale or not self._folders.isdisjoint(concerned)
        self._announce(concerned)

    def _announce(self, paths: Iterable[Path]) -> None:
        self._changed.update(paths)
        if self._changed:
            self._announced += 1
            self._has_changed.set()

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(POLL_S if self.polls else CHECK_S)
            # What is heard from now on may be of a change that the next look shows.
            heard, self._heard = self._heard, set()
            changed = await self._differences()
            if changed and not self.polls:
                await asyncio.sleep(EVENT_S)
                heard |= self._heard
                changed = {path for path in changed if not _is_among(path, heard)}
                if changed:
                    self._poll_from_now_on(f"no event came for {min(changed).name}")
            self._announce(changed)
            if any(path.is_dir() or path in self._folders for path in changed):
                await self._follow()

    async def _differences(self) -> set[Path]:
        before = self._look
        self._look = await asyncio.to_thread(look_at, self._folders, self._places.files)
        return differences(before, self._look)

    def _poll_from_now_on(self, why: str) -> None:
        if not self.polls:
            self.polls = True
            log.warning("Files are looked at for changes, not listened to", reason=why)
            if self._events is not None and self._events is not asyncio.current_task():
                self._events.cancel()


def _is_among(path: Path, heard: set[Path]) -> bool:
    return not heard.isdisjoint({path, path.parent, path.resolve().parent})


__all__ = ["FileWatch"]
