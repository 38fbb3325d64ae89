"""Reads which modules a source may import, without running it."""

import ast
import hashlib
import re
from collections.abc import Iterator

_MOST_KNOWN = 4096
_known: dict[tuple[bytes, str], tuple[str, ...]] = {}
_WORD = re.compile(rb"\bimport\b")
_STATEMENT = re.compile(
    rb"^[ \t]*((?:from[ \t]+[\w.]+[ \t]+)?import\b[ \t]*(?:\([^()#]*\)|[^\n(;\\#]+))"
    rb"(?:#[^\n]*)?\r?$",
    re.MULTILINE,
)
"""An import with lines of its own; its text is the first group."""
_BODIES = ("body", "orelse", "finalbody", "handlers", "cases")
"""The fields of a statement that hold other statements."""


def imported_names(source: bytes, package: str) -> tuple[str, ...]:
    """The dotted names that a source may import; some may not be modules.

    Imports inside of functions and below `if TYPE_CHECKING:` count too, and so may an import that
    is a line of a text, or of a source that is not Python.

    Args:
        source: the content of the file.
        package: the package that relative imports start from; empty without one.
    """
    # By the digest: with the sources themselves as keys, every version that was saved would stay.
    key = hashlib.sha256(source).digest(), package
    found = _known.get(key)
    if found is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        found = _known[key] = _read(source, package)
    return found


def _read(source: bytes, package: str) -> tuple[str, ...]:
    # To parse the whole of each source took a twentieth of a start.
    statements = _STATEMENT.findall(source)
    tree = None
    if len(statements) == len(_WORD.findall(source)):
        tree = _parse(b"\n".join(statements))
    if tree is None:
        tree = _parse(source)
    return () if tree is None else tuple(dict.fromkeys(_names(tree, package)))


def _parse(source: bytes) -> ast.Module | None:
    """The tree; None of a source that is not Python."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _names(tree: ast.Module, package: str) -> Iterator[str]:
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                around = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*around, *([origin] if origin else [])])
            if origin:
                yield origin
                yield from (f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements at every depth, without their expressions, which are most of a tree."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in _BODIES:
            waiting += getattr(node, field, ())
