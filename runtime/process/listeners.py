"""Checks the ports that a start will listen on, before anything is started or created."""

from collections.abc import Iterator, Mapping

from runtime.embedded.nats_server import wanted_ports
from runtime.embedded.ports import WantedPort, check_distinct, check_free
from runtime.loader import Function
from runtime.manifest import Manifest
from runtime.settings import HostSettings


def check_ports(
    settings: HostSettings, manifest: Manifest, functions: Mapping[str, Function]
) -> None:
    """Check that the admin port and the ports of all services are free.

    The ports of the embedded nats-server are only compared with the others: an earlier host's
    server may still use them, and is ended first.

    Raises:
        ConfigError: lists every port that is taken, or that two listeners want.
    """
    own = [
        WantedPort(settings.admin_port, "the admin server", "RUNTIME_ADMIN_PORT"),
        *_of_services(settings, manifest, functions),
    ]
    check_distinct([*own, *(() if settings.nats_url else wanted_ports(settings))])
    check_free(own)


def _of_services(
    settings: HostSettings, manifest: Manifest, functions: Mapping[str, Function]
) -> Iterator[WantedPort]:
    """The services that listen: their settings have the fields `host` and `port`."""
    for name, function in functions.items():
        host, port = (getattr(function.settings, field, None) for field in ("host", "port"))
        if not (function.spec.service and isinstance(host, str) and isinstance(port, int)):
            continue
        place = manifest.positions.where("functions", name, "settings", "port")
        change = "GATEWAY_PORT" if port == settings.gateway_port else f"the port in {place}"
        yield WantedPort(port, f"function {name}", change, host=host)
