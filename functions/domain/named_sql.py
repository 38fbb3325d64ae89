"""Reads named SQL statements from files."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


def read_queries(path: Path) -> Mapping[str, str]:
    """The statements of a `.sql` file by name; each follows a line `-- name: insert_rows`.

    Raises:
        ValueError: two statements have the same name, or the file has no statement.
    """
    parts = _NAME.split(path.read_text(encoding="utf-8"))[1:]
    names, texts = parts[::2], parts[1::2]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{path.name}: every statement needs a name of its own")
    return MappingProxyType(
        {name: text.strip().rstrip(";") for name, text in zip(names, texts, strict=True)}
    )
