"""`runtime` that dies while it hands jobs over: `python -m tests.fault.dying serve …`.

Each line of the file in DEATHS_FILE is one death, in this order: `before` or `after` the publish of
jobs. A host removes the line, and kills itself.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from runtime.broker.connection import Broker
from runtime.context import PubAck, Publication

_FILE = Path(os.environ["DEATHS_FILE"])
_publish_many = Broker.publish_many


async def _publish_and_die(self: Broker, publications: Sequence[Publication]) -> list[PubAck]:
    are_jobs = publications[0].subject.startswith("routes.")
    if are_jobs:
        _die_at("before")
    done = await _publish_many(self, publications)
    if are_jobs:
        _die_at("after")
    return done


def _die_at(moment: str) -> None:
    deaths = _FILE.read_text(encoding="utf-8").split()
    if deaths[:1] == [moment]:
        _FILE.write_text("\n".join(deaths[1:]), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Broker.publish_many = _publish_and_die  # type: ignore[method-assign]
    from runtime.cli import main

    main()
