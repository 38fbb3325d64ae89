"""`runtime serve`: runs the functions until a signal."""

import os
from pathlib import Path

import click

from runtime.cli.failure import ExitCode, exit_unavailable, exit_with_problems
from runtime.cli.manifests import takes_manifests
from runtime.errors import ConfigError, Unavailable
from runtime.observe.logs import configure_logs
from runtime.process.event_loop import run
from runtime.process.lifecycle import ServeOptions, serve_as_worker
from runtime.process.lifecycle import serve as serve_until_stopped
from runtime.process.workers import CONFIG_ERROR_CODE, WorkerPlace
from runtime.settings import HostSettings

_REMEDIES = {
    name: f"Check that this server runs, and the address in {variable}"
    for name, variable in (("NATS", "NATS_URL"), ("PostgreSQL", "DATABASE_URL"))
}
"""What the user can do when a server does not answer at start."""


@click.command()
@takes_manifests
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes."
)
@click.option("--bind-only", is_flag=True, help="Make and change no stream and no consumer.")
@click.option("--reload", is_flag=True, help="Reload functions when files change; for development.")
@click.option(
    "--reload-poll", is_flag=True, help="As --reload, looking at the files four times a second."
)
@click.option("--worker-place", hidden=True, help="Given by the supervisor to its workers.")
def serve(
    *,
    manifests: tuple[Path, ...],
    workers: int,
    bind_only: bool,
    reload: bool,
    reload_poll: bool,
    worker_place: str | None,
) -> None:
    """Serve MANIFESTS, files or folders, until Ctrl-C.

    `--with backbone` adds the shipped IoT backbone, `--with gateway` only its HTTP gateway.

    Without NATS_URL a nats-server is started, without DATABASE_URL a PostgreSQL; both keep their
    data in RUNTIME_DATA_DIR. The first SIGINT or SIGTERM drains, the second stops at once. Exits
    with 2 when a file or variable must be changed first, with 1 when a server does not answer.

    With --reload a function's new version runs from its next message on when a file is saved. What
    cannot be loaded is shown, and the last good version runs on.
    """
    try:
        settings = HostSettings.from_environment(os.environ)
        configure_logs(settings.log_level, settings.log_format)
        options = ServeOptions(
            manifests,
            settings,
            dict(os.environ),
            workers,
            bind_only,
            reload=reload or reload_poll,
            reload_polls=reload_poll,
        )
        if worker_place is None:
            run(serve_until_stopped(options))
        else:
            run(serve_as_worker(options, WorkerPlace.decode(worker_place)))
    except ConfigError as error:
        exit_with_problems(error, CONFIG_ERROR_CODE if worker_place else ExitCode.REFUSED)
    except Unavailable as error:
        exit_unavailable(str(error), _REMEDIES.get(error.what.partition(" ")[0], ""))
