"""Connects an operator's command to NATS, and exits with a code when that fails."""

import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
import uvloop

from runtime.broker.connection import ApiError, Broker
from runtime.cli.failure import exit_unavailable, exit_with_nothing_done, exit_with_problems
from runtime.embedded.credentials import NatsAddress, find_nats
from runtime.errors import ConfigError, Unavailable, Unsendable
from runtime.observe.logs import configure_logs
from runtime.observe.redaction import REDACTED, scrub
from runtime.settings import HostSettings

T = TypeVar("T")

CONNECT_LIMIT_S = 5.0
_NOBODY = "NoResponders"

nats_url_option = click.option(
    "--nats-url",
    envvar="NATS_URL",
    show_envvar=True,
    metavar="URL",
    help="The server; without it the one that `runtime serve` embeds, on 127.0.0.1.",
)


def run(
    nats_url: str | None, work: Callable[[Broker], Awaitable[T]], *, log_level: str = "ERROR"
) -> T:
    """Connect, and return the result of `work`.

    Exits with 2 when a file or variable must be changed, and with 1 when NATS does not answer.
    """
    configure_logs(log_level)
    address = find_server(nats_url)
    try:
        return uvloop.run(_run(address.url, work))
    except ConfigError as error:
        exit_with_problems(error)
    except Unsendable as error:
        exit_with_nothing_done(str(error))
    except Unavailable as error:
        exit_unavailable(str(error), _remedy(error, None if nats_url else address))
    except ApiError as error:
        exit_unavailable(f"JetStream refused: {error.description} ({error.err_code})")


def show_server(nats_url: str | None) -> str:
    """The server that `run` connects to, without user and password."""
    return scrub(find_server(nats_url).url).replace(f"{REDACTED}@", "")


def find_server(nats_url: str | None) -> NatsAddress:
    """The server that `run` connects to; the password is part of its URL."""
    if nats_url:
        return NatsAddress(nats_url, None)
    return find_nats(HostSettings.from_environment(os.environ))


def _remedy(error: Unavailable, embedded: NatsAddress | None) -> str:
    """What the user can do; `embedded` is None when the user has named the server."""
    if error.what == "JetStream" and _NOBODY in error.reason:
        return "The server answers without JetStream: enable it, `nats-server -js`"
    if not error.what.startswith("NATS at"):
        return ""
    if embedded is None:
        return "Check that this server runs, and the address in --nats-url or NATS_URL"
    if embedded.missing is None:
        return "Start it with `runtime serve`, or name another server with --nats-url or NATS_URL"
    return (
        f"There is no password in {embedded.missing}: run this where `runtime serve` runs and as "
        "its user, or set RUNTIME_DATA_DIR or NATS_URL"
    )


async def _run(url: str, work: Callable[[Broker], Awaitable[T]]) -> T:
    broker = await Broker.connect(url, name="runtime command", timeout_s=CONNECT_LIMIT_S)
    try:
        return await work(broker)
    finally:
        await broker.close()
