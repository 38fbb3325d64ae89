"""Reads the commands of the documents, and what is expected of each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

FOLDER = Path(__file__).parent
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r"\A# (.+)$", re.MULTILINE)
_CUT = " …"

Shown = Annotated[str, Field(min_length=1)]
"""A regular expression that is searched in the output of a command."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Effect(_Model):
    """What a command brings about: a second command that is repeated until it shows it.

    Attributes:
        run: the second command.
        shows: what it prints in the end.
    """

    run: str
    shows: Shown


class Difference(_Model):
    """Why a command does not do here what its document says.

    Attributes:
        why: the reason, for a person.
        fails: what the command prints as it is written.
        shown_by: a command that prints this instead, after a command that hides its failure.
        here: whether the command as written is run here; False when it would do harm.
        on_plain_server: whether it is run on a nats-server without any configuration of ours, and
            fails there likewise: the mistake is the document's.
        instead: the command that does it here.
    """

    why: str
    fails: Shown
    shown_by: str = ""
    here: bool = True
    on_plain_server: bool = False
    instead: str


class Expectation(_Model):
    """What a command of a document does.

    Attributes:
        run: the command with single blanks; ` …` at the end leaves out the rest.
        shows: what it prints, or what the command in its place prints.
        again: whether it is run again until it prints that, as what it reports comes later.
        note: what a person should know of a command that passes.
        publish: for a command that listens until it is ended: what to publish once it listens.
        listens: whether the command runs until it is ended.
        effect: what it brings about.
        differs: why it does not do what the document says.
    """

    run: str
    shows: str = ""
    again: bool = False
    note: str = ""
    publish: str = ""
    listens: bool = False
    effect: Effect | None = None
    differs: Difference | None = None

    def covers(self, command: str) -> bool:
        """Whether the expectation is of this command."""
        text = " ".join(command.replace("\\\n", " ").split())
        if self.run.endswith(_CUT):
            return text.startswith(self.run.removesuffix(_CUT))
        return text == self.run


@dataclass(frozen=True, slots=True)
class Document:
    """A document's commands, in order, and what is expected of each."""

    title: str
    commands: tuple[str, ...]
    expectations: tuple[Expectation, ...]

    def pairs(self) -> Iterator[tuple[str, Expectation]]:
        """Each command with its expectation.

        Raises:
            ValueError: the two lists do not agree; the text names the first difference.
        """
        for number, command in enumerate(self.commands):
            if number >= len(self.expectations):
                raise ValueError(f"{self.title}: nothing is expected of: {command}")
            if not self.expectations[number].covers(command):
                raise ValueError(
                    f"{self.title}: {self.expectations[number].run!r} is expected, not: {command}"
                )
            yield command, self.expectations[number]
        if len(self.expectations) > len(self.commands):
            extra = self.expectations[len(self.commands)].run
            raise ValueError(f"{self.title}: the document has no command {extra!r}")


def read_documents() -> list[Document]:
    """The five documents, in order."""
    text = (FOLDER / "expectations.yaml").read_text("utf-8")
    expected = TypeAdapter(dict[str, list[Expectation]]).validate_python(yaml.safe_load(text))
    pages = sorted((FOLDER / "documents").glob("*.md"))
    if expected.keys() != {page.stem for page in pages}:
        raise ValueError("expectations.yaml does not name the pages in documents/")
    return [_read(page, expected[page.stem]) for page in pages]


def _read(page: Path, expectations: list[Expectation]) -> Document:
    text = page.read_text("utf-8")
    title = _TITLE.search(text)
    commands = [command for block in _BLOCK.findall(text) for command in split_commands(block)]
    return Document(title[1] if title else page.stem, tuple(commands), tuple(expectations))


def split_commands(block: str) -> list[str]:
    """The commands of a block of shell: a script as a whole, else every line and loop."""
    if block.startswith("#!"):
        return [block]
    commands: list[str] = []
    lines: list[str] = []
    for line in block.splitlines():
        if not lines and (not line.strip() or line.startswith("#")):
            continue
        lines.append(line)
        is_loop = lines[0].startswith("for ") and line != "done"
        if not line.endswith("\\") and not is_loop:
            commands.append("\n".join(lines))
            lines = []
    return commands + ["\n".join(lines)] * bool(lines)
