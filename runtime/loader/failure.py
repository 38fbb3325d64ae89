"""Describes why a function's new version cannot be loaded, with the author's own line."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import Problem

_LINES_AROUND = 1
_MOST_COLUMNS = 200


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """Why a function's new version cannot be loaded.

    Attributes:
        where: `file:line` of the mistake, relative to the current folder if it is inside; a name
            such as `function ingest` when no line is known.
        wrong: the mistake, without a value of the manifest or the environment.
        remedy: what would be right.
        excerpt: the line with its neighbours, numbered, the line itself marked by `>`; empty when
            no line is known. It is source text of the project, for a person at the terminal.
    """

    where: str
    wrong: str
    remedy: str
    excerpt: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.wrong}; {self.remedy}"

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> "LoadFailure":
        """The failure that a person should correct first.

        It is the first problem, or one of a field inside the first one's.

        Args:
            problems: at least one.
        """
        first, *others = problems
        for at, other in enumerate(others):
            # An entry that lacks a key lacks it because the key inside it is misspelt.
            if first.field and other.field.startswith(f"{first.field}."):
                first, others[at] = other, first
        more = f" (and {len(others)} more)" if others else ""
        field = f"{first.field}: " if first.field else ""
        # A setting may be a secret, though it should be a reference to one.
        shown = "" if ".settings" in first.field else excerpt_of(first.where)
        return cls(first.where, f"{field}{first.wrong}{more}", first.remedy, shown)


def excerpt_of(where: str) -> str:
    """The lines around `file:line` on the disk; empty when there is no such line.

    Of a manifest it is the line alone, as its neighbours may have values that nobody should see.
    """
    file, _, number = where.rpartition(":")
    if not file or not number.isdecimal():
        return ""
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return excerpt(lines, int(number), around=_LINES_AROUND if path.suffix == ".py" else 0)


def excerpt(lines: Sequence[str], at: int, around: int = _LINES_AROUND) -> str:
    """Line `at` with its neighbours, numbered from 1, and marked; empty if there is none."""
    if not 1 <= at <= len(lines):
        return ""
    first, last = max(1, at - around), min(len(lines), at + around)
    width = len(str(last))
    return "\n".join(
        f"{'>' if line == at else ' '} {line:>{width}} │ {_clean(lines[line - 1])}"
        for line in range(first, last + 1)
    )


def _clean(line: str) -> str:
    text = line.rstrip().expandtabs(4)[:_MOST_COLUMNS]
    return "".join(letter if letter.isprintable() else "�" for letter in text)


__all__ = ["LoadFailure", "excerpt", "excerpt_of"]
