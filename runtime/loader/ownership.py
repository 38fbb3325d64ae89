"""Decides which files belong to the project, and which to Python, to packages or to the host."""

import functools
import sys
import sysconfig
from pathlib import Path

HOST = "runtime"
_INSTALLATIONS = frozenset({"site-packages", "dist-packages"})
_CACHES = frozenset({"__pycache__", "node_modules", "build", "dist"}) | _INSTALLATIONS
_SYSTEM = ("/usr", "/proc", "/sys", "/dev", "/lib", "/bin", "/sbin", "/opt/homebrew")


def is_installed(file: Path) -> bool:
    """Whether a file belongs to an installed package or to Python itself."""
    # By the folder's name too: a `.pth` file or PYTHONPATH may add another environment's packages.
    return not _INSTALLATIONS.isdisjoint(file.parts) or any(
        file.is_relative_to(place) for place in _python_itself()
    )


def is_project_folder(folder: Path) -> bool:
    """Whether a folder inside of a project may contain project files, judged by itself alone."""
    return not (
        folder.name.startswith(".")
        or folder.name in _CACHES
        or folder.name.endswith(".egg-info")
        or (folder / "pyvenv.cfg").exists()
    )


def may_be_data(file: Path) -> bool:
    """Whether a file that a module reads may be data of the project."""
    if file.suffix in {".py", ".pyc", ".so"} or str(file).startswith(_SYSTEM):
        return False
    return not is_installed(file) and not file.is_relative_to(sys.prefix)


@functools.cache
def _python_itself() -> tuple[Path, ...]:
    """The folders of Python's own modules, and of this environment's packages."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(place) for place in sorted({sysconfig.get_path(kind) for kind in kinds}))


__all__ = ["HOST", "is_installed", "is_project_folder", "may_be_data"]
