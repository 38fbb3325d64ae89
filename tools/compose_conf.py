"""Writes compose/nats/nats.conf: `python -m tools.compose_conf`, a part of `make reference`.

Users, permissions and subject mappings are those of the embedded nats-server.
"""

import sys
from pathlib import Path

from runtime.embedded.nats_config import NatsPorts, render

ROOT = Path(__file__).parents[1]
FILE = ROOT / "compose" / "nats" / "nats.conf"
_ISSUER = "the account key"
_ACCESS = "# For `nats server …`"

_HEAD = """\
# nats-server for docker-compose.yml. Written by `make reference`; change tools/compose_conf.py.
# Passwords and the account key come from the environment, see .env.

server_name: pulse-nats
listen: 0.0.0.0:4222

# Monitoring
http_port: 8222

mqtt {
  port: 1883
  # For consumers that a crash left without their session; sessions expire earlier.
  consumer_inactive_threshold: "720h"
}

jetstream {
  store_dir: /data/jetstream
  max_mem: 256MB
  # The server reserves max_bytes of every stream, used or not.
  max_file: 8GB
  # A power cut may lose the messages since the last sync; the default is two minutes.
  sync_interval: "10s"
}

# One node. To add nodes later, raise `replicas` in the manifests and configure:
# cluster {
#   name: pulse-nats-cluster
#   listen: 0.0.0.0:6222
#   routes: [
#     nats-route://nats-1:6222
#     nats-route://nats-2:6222
#   ]
# }

debug: false
trace: false
logtime: true

# The backbone refuses device bodies above 8 KB with a reason, so the server takes them.
max_payload: 8MB
max_connections: 1024

"""


def compose_conf() -> str:
    """The text of the file."""
    embedded = render(Path("/data"), NatsPorts(), max_file=0, auth_issuer=_ISSUER)
    head, found, access = embedded.partition(_ACCESS)
    if not found:
        raise ValueError(f"the embedded configuration has no line {_ACCESS!r}: {head}")
    return _HEAD + found + access.replace(f'"{_ISSUER}"', "$NATS_AUTH_ISSUER_PUBLIC")


def main() -> None:
    """Write the file."""
    FILE.write_text(compose_conf(), encoding="utf-8")
    sys.stdout.write(f"{FILE.relative_to(ROOT)}: written\n")


if __name__ == "__main__":
    main()
