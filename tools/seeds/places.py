"""Where the commands of the documents run: addresses, environment, and stand-in programs."""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

ROOT = Path(__file__).parents[2]
_BUILT = ROOT / ".tools" / "nats"
_NEEDED = ("bash", "curl", "grep", "jq", "watch")

_DOCKER = """\
#!/bin/sh
# `docker exec CONTAINER COMMAND` runs the command here; `docker compose logs` has no lines.
[ "$1" = exec ] && shift 2 && exec "$@"
[ "$1 $2" = "compose logs" ]
"""
_KUBECTL = """\
#!/bin/sh
# `kubectl exec -n NAMESPACE POD -- COMMAND` runs the command here.
[ "$1" = get ] && echo nats-box && exit
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""
_MOSQUITTO_PUB = """\
#!/bin/sh
cd {root} && exec {python} -m tools.seeds.mosquitto_pub "$@"
"""


class MissingProgramError(Exception):
    """A program that the commands need is not installed; the text names it."""


@dataclass(frozen=True, slots=True)
class Places:
    """Ports and folder of one server under test.

    Attributes:
        folder: the folder in which commands run and store files.
        nats: port for clients.
        monitor: port of the monitoring.
        mqtt: port of the MQTT listener; 0 for none.
        admin: port of the host's metrics; 0 for none.
        environment: further variables for the commands.
    """

    folder: Path
    nats: int
    monitor: int
    mqtt: int
    admin: int
    environment: Mapping[str, str]

    def translate(self, command: str) -> str:
        """The command with these addresses in place of the document's."""
        loopback = "127.0.0.1"
        text = re.sub(r"\b(?:iot-nats|nats|localhost):4222", f"{loopback}:{self.nats}", command)
        text = re.sub(r"\b(?:localhost|10\.0\.0\.248):8222", f"{loopback}:{self.monitor}", text)
        text = re.sub(r"\blocalhost:8081", f"{loopback}:{self.admin}", text)
        text = text.replace("-h localhost -p 1883", f"-h {loopback} -p {self.mqtt}")
        return text.replace("/tmp/", f"{self.folder}/")  # noqa: S108 - of the document

    def variables(self) -> dict[str, str]:
        """The environment of a command."""
        return {
            "REPOSITORY": str(ROOT),
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "NATS_BOX": "nats-box",
            "NO_COLOR": "1",
            "TERM": "xterm",
            **self.environment,
        }


def write_programs(folder: Path) -> str:
    """Write stand-ins into `folder/bin`; say which MQTT client there is.

    Raises:
        MissingProgramError: a program without a stand-in is missing.
    """
    programs = folder / "bin"
    programs.mkdir(parents=True)
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    nats = str(_BUILT) if _BUILT.is_file() else shutil.which("nats")
    if nats is None:
        missing.append("nats (tools/nats-cli/build builds it, with Go)")
    else:
        (programs / "nats").symlink_to(nats)
    if missing:
        raise MissingProgramError(f"These programs are needed: {', '.join(missing)}.")
    _write(programs / "docker", _DOCKER)
    _write(programs / "kubectl", _KUBECTL)
    if found := shutil.which("mosquitto_pub"):
        return found
    script = _MOSQUITTO_PUB.format(root=quote(str(ROOT)), python=quote(sys.executable))
    _write(programs / "mosquitto_pub", script)
    return "paho-mqtt, with the arguments of mosquitto_pub"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
