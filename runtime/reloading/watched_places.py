"""Finds the folders to watch for changes of a project, and what a look at their files shows."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.loader.ownership import is_installed, is_project_folder

SUFFIXES = frozenset({".py", ".yaml", ".yml", ".sql"})
_WITHOUT_EVENTS = frozenset(
    {
        *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4"),
        *("smb3", "smbfs", "fuse.sshfs"),
        # Folders of the machine outside, in a container or in a virtual machine.
        *("fakeowner", "fuse.grpcfuse", "fuse.vmhgfs-fuse", "grpcfuse", "osxfs", "prl_fs"),
        *("vboxsf", "virtiofs", "vmhgfs"),
    }
)
"""File systems whose files change without an event when another machine writes them."""

Look = Mapping[Path, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class WatchedPlaces:
    """Where files may change.

    Attributes:
        folders: folders watched without their subfolders.
        trees: folders watched with all subfolders that may belong to a project: not hidden ones,
            caches, virtual environments and installed packages.
        files: files that count wherever they are and whatever their suffix.
    """

    folders: frozenset[Path]
    trees: frozenset[Path]
    files: frozenset[Path]

    def expanded(self) -> frozenset[Path]:
        """All existing folders to watch, those that the files' links lead to included."""
        found = {folder for folder in self.folders if folder.is_dir()}
        for tree in self.trees:
            found.add(tree.parent)  # It tells when the tree itself is deleted and made again.
            found |= set(_walk(tree))
        for file in self.files:
            found |= {file.parent, file.resolve().parent}
        return frozenset(folder for folder in found if os.access(folder, os.R_OK | os.X_OK))

    def concerns(self, path: Path, folders: frozenset[Path]) -> bool:
        """Whether a change of this path may change what is loaded.

        Args:
            path: what changed.
            folders: the watched folders.
        """
        if path in self.files or path in folders:
            return True
        if path.name.startswith("."):
            return path.name.startswith("..")  # The link that a ConfigMap's update replaces.
        return path.suffix in SUFFIXES or path.is_dir()


def look_at(folders: Iterable[Path], files: Iterable[Path]) -> Look:
    """What `stat` shows of the files that may count; a folder that cannot be read has none."""
    found: dict[Path, tuple[int, ...]] = {}
    for folder in folders:
        for entry in _entries(folder):
            if entry.suffix in SUFFIXES and not entry.name.startswith("."):
                found[entry] = _stat(entry)
            elif entry.is_dir() and is_project_folder(entry):
                found[entry] = ()
    for file in files:
        found[file] = _stat(file)
    return found


def differences(before: Look, now: Look) -> set[Path]:
    """The paths that one look shows and the other does not, or not so."""
    return {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}


def has_events(folder: Path) -> bool:
    """Whether the operating system tells of all changes in a folder, as far as can be known."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    except OSError:
        return True
    kinds: dict[str, str] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        kinds[before.split()[4].encode().decode("unicode_escape")] = after.split()[0]
    place = folder.resolve()
    nearest = next((str(each) for each in (place, *place.parents) if str(each) in kinds), "/")
    return kinds.get(nearest, "") not in _WITHOUT_EVENTS


def _walk(tree: Path) -> Iterator[Path]:
    for place, inner, _ in os.walk(tree):
        folder = Path(place)
        if is_installed(folder):
            inner.clear()
            continue
        yield folder
        inner[:] = [name for name in inner if is_project_folder(folder / name)]


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _stat(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return (0,)
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


__all__ = ["Look", "WatchedPlaces", "differences", "has_events", "look_at"]
