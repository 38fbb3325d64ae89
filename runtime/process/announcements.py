"""Announces a process's start and end: log entries, or a screen on a terminal."""

import sys
import time
from collections.abc import Mapping

from runtime.observe import stderr
from runtime.observe.console import has_colors, terminal_width
from runtime.observe.logs import begin_progress, end_progress, get_logger, is_for_a_person
from runtime.process.start_screen import LOOPBACK, StartScreen
from runtime.settings import HostSettings

log = get_logger("runtime")


class Announcements:
    """Announces that a process has started, is ready, drains and has stopped.

    On a terminal a worker announces nothing: its supervisor announces for all processes.

    Args:
        settings: of the host.
        began_s: when the start began, by the monotonic clock.
        worker: the name of this worker process; empty when the process is not a worker.

    Attributes:
        screen: the screen that shows when the host is ready; None in a worker, and until it is
            known.
    """

    def __init__(self, settings: HostSettings, *, began_s: float, worker: str = "") -> None:
        self._settings = settings
        self._began_s = began_s
        self._worker = worker
        self._is_shown = is_for_a_person()
        self._tell = log.debug if worker and self._is_shown else log.info
        self.screen: StartScreen | None = None
        begin_progress(is_shown=not worker)

    def started(self, *, admin_port: int, workers: int) -> None:
        """Announce that the workers of a supervisor run and get ready."""
        end_progress()  # The workers write to the same terminal from now on.
        if not self._is_shown:
            log.info("Started", workers=workers, **_addresses(self._settings, admin_port))

    def ready(self, *, admin_port: int | None = None, functions: int | None = None) -> None:
        """Announce that all functions are served.

        Args:
            admin_port: the port of this process's admin server; None for a worker.
            functions: number of functions in this process; None for a supervisor.
        """
        end_progress()
        seconds = round(time.monotonic() - self._began_s, 2)
        if self.screen and self._is_shown and admin_port is not None:
            drawn = self.screen.draw(
                admin_port=admin_port,
                seconds=seconds,
                width=terminal_width(sys.stderr),
                colors=has_colors(sys.stderr),
            )
            stderr.write(drawn)
            return
        fields: dict[str, object] = {} if functions is None else {"functions": functions}
        fields["seconds"] = seconds
        if self._worker:
            fields["worker"] = self._worker
        elif functions is not None and admin_port is not None:
            fields |= _addresses(self._settings, admin_port)
        self._tell("Ready", **fields)

    def draining(self, held: Mapping[str, int] | None = None) -> None:
        """Announce a drain: no new messages are taken.

        Args:
            held: number of held messages, by function; None for a supervisor.
        """
        if self.screen and self._is_shown:
            width = terminal_width(sys.stderr)
            stderr.write(
                self.screen.draw_drain(held=held, width=width, colors=has_colors(sys.stderr))
            )
            return
        self._tell("Draining", grace_s=self._settings.grace_s)

    def stopped_early(self) -> None:
        """Announce that a signal ended the start."""
        self.end()
        self._tell("Stopped before it was ready")

    def end(self) -> None:
        """Mark the start as over, whether it succeeded or failed."""
        end_progress()

    def stopped(self) -> None:
        """Announce that the process has stopped."""
        self._tell("Stopped")


def _addresses(settings: HostSettings, admin_port: int) -> dict[str, str]:
    """The addresses of the host and of its embedded servers."""
    found = {"admin": f"http://{LOOPBACK}:{admin_port}"}
    if settings.nats_url is None:
        found["nats"] = f"nats://{LOOPBACK}:{settings.nats_port}"
        found["mqtt"] = f"mqtt://{LOOPBACK}:{settings.mqtt_port}"
    return found
