"""`make seeds`: the commands of the documents that this project began from, on a running host.

Each of them passes, or differs for a reason that docs/decisions gives, or fails. Exit code: 0 when
none fails, 1 when one does, 2 when a program is missing.
"""

import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

from tools.seeds.documents import Expectation, read_documents
from tools.seeds.judging import Verdict, judge
from tools.seeds.places import MissingProgramError, write_programs
from tools.seeds.report import COLUMNS, draw, summarize
from tools.seeds.servers import plain_server, running_host
from tools.seeds.shell import Shell

_HEAD = """\
Each command runs on `runtime serve manifests/`, on free ports of 127.0.0.1 in
place of its own addresses. docker exec and kubectl exec: a shell here.
MQTT client: {client}"""

_AFTERWARDS = Expectation(
    run='runtime plan "$REPOSITORY/manifests"',
    shows="^No changes",
    note="The server is as the manifests say.",
)


def main() -> int:
    """Run everything; return the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="runtime-seeds-"))
    # When it runs as root, PostgreSQL runs as another user, which must traverse the folder.
    folder.chmod(0o711)
    try:
        client = write_programs(folder)
        (folder / "plain").mkdir()
        (folder / "plain" / "bin").symlink_to(folder / "bin")
        _say(_HEAD.format(client=client))
        verdicts = _run(folder)
    except MissingProgramError as missing:
        _say(textwrap.fill(str(missing), COLUMNS))
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _say("", summarize(verdicts))
    return int(any(verdict.outcome == "fails" for verdict in verdicts))


def _run(folder: Path) -> list[Verdict]:
    verdicts: list[Verdict] = []
    with running_host(folder) as host, plain_server(folder / "plain") as plain:
        shells = Shell(host), Shell(plain)
        for document in read_documents():
            _say("", document.title)
            for command, expected in document.pairs():
                verdicts.append(judge(command, expected, *shells))
                _say(draw(verdicts[-1]))
        _say("", "The streams and consumers after all of them")
        verdicts.append(judge(_AFTERWARDS.run, _AFTERWARDS, *shells))
        _say(draw(verdicts[-1]))
    return verdicts


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
