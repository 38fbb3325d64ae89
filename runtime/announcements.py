"""What the host says of its start and its end: entries of the log, or a screen for a person."""

import sys
import time
from collections.abc import Mapping

from runtime.observe import stderr
from runtime.observe.console import has_colors, terminal_width
from runtime.observe.logs import begin_progress, end_progress, get_logger, is_for_a_person
from runtime.settings import HostSettings
from runtime.start_screen import LOOPBACK, StartScreen

log = get_logger("runtime")


class Announcements:
    """Says when a process is started, ready, draining and stopped.

    On a terminal a worker says nothing of that: its supervisor does, for all processes.

    Args:
        settings: of the host.
        began_s: when the start began, by the monotonic clock.
        worker: the name of the worker that this process is; empty for a host that is none.

    Attributes:
        screen: what a person sees when the host is ready; None in a worker, and until it is known.
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
        """The workers of a supervisor run, and get ready."""
        end_progress()  # The workers write to the same terminal from now on.
        if not self._is_shown:
            log.info("Started", workers=workers, **_addresses(self._settings, admin_port))

    def ready(self, *, admin_port: int | None = None, functions: int | None = None) -> None:
        """All functions are served.

        Args:
            admin_port: where this process answers; None for a worker.
            functions: how many run in this process; None for a supervisor.
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
        """Nothing new is taken.

        Args:
            held: messages that are here, by function; None for a supervisor.
        """
        if self.screen and self._is_shown:
            width = terminal_width(sys.stderr)
            stderr.write(
                self.screen.draw_drain(held=held, width=width, colors=has_colors(sys.stderr))
            )
            return
        self._tell("Draining", grace_s=self._settings.grace_s)

    def stopped_early(self) -> None:
        """A signal ended the start."""
        self.end()
        self._tell("Stopped before it was ready")

    def end(self) -> None:
        """The start is over, however it ended."""
        end_progress()

    def stopped(self) -> None:
        """Everything has ended."""
        self._tell("Stopped")


def _addresses(settings: HostSettings, admin_port: int) -> dict[str, str]:
    """Where people and devices find the host; embedded servers alone have an address of ours."""
    found = {"admin": f"http://{LOOPBACK}:{admin_port}"}
    if settings.nats_url is None:
        found["nats"] = f"nats://{LOOPBACK}:{settings.nats_port}"
        found["mqtt"] = f"mqtt://{LOOPBACK}:{settings.mqtt_port}"
    return found
