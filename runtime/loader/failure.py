"""Describes why a function's new version cannot be loaded, with the author's own line."""

import linecache
from collections.abc import Iterable
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
    def of(cls, problems: Iterable[Problem], *, where: str = "") -> "LoadFailure":
        """The failure that a person should correct first.

        Args:
            problems: at least one.
            where: `file:line` of the mistake, if it is known better than by the first problem.
        """
        first, *others = problems
        more = f" (and {len(others)} more)" if others else ""
        place = where or first.where
        field = f"{first.field}: " if first.field and not where else ""
        return cls(place, f"{field}{first.wrong}{more}", first.remedy, excerpt_of(place))


def excerpt_of(where: str) -> str:
    """The lines around `file:line`; empty when there is no such line."""
    file, _, number = where.rpartition(":")
    if not file or not number.isdecimal():
        return ""
    path = str(Path(file).absolute())
    linecache.checkcache(path)
    lines = linecache.getlines(path)
    at = int(number)
    if not 1 <= at <= len(lines):
        return ""
    first, last = max(1, at - _LINES_AROUND), min(len(lines), at + _LINES_AROUND)
    width = len(str(last))
    return "\n".join(
        f"{'>' if line == at else ' '} {line:>{width}} │ {_clean(lines[line - 1])}"
        for line in range(first, last + 1)
    )


def _clean(line: str) -> str:
    text = line.rstrip().expandtabs(4)[:_MOST_COLUMNS]
    return "".join(letter if letter.isprintable() else "�" for letter in text)


__all__ = ["LoadFailure", "excerpt_of"]
