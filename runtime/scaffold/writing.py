"""Renders templates, and writes all files of something new or none of them."""

from collections.abc import Mapping
from pathlib import Path
from string import Template

from runtime.errors import ConfigError, Problem

_TEMPLATES = Path(__file__).parent / "templates"


def render(kind: str, file: str, values: Mapping[str, str]) -> str:
    """The text of `templates/KIND/FILE.template` with its `$names` replaced."""
    text = (_TEMPLATES / kind / f"{file}.template").read_text(encoding="utf-8")
    return Template(text).substitute(values)


def write_all(folder: Path, files: Mapping[str, str]) -> None:
    """Write new files below `folder`, and overwrite none.

    Args:
        folder: made when it does not exist.
        files: text by path relative to `folder`.

    Raises:
        ConfigError: a file exists, or cannot be written; then none of them is left behind.
    """
    taken = [name for name in files if (folder / name).exists() or (folder / name).is_symlink()]
    if taken:
        remedy = "choose another name, or move it away"
        shown = [Problem(str(folder / each), "", "it exists already", remedy) for each in taken]
        raise ConfigError(shown)
    made: list[Path] = []
    for name, text in files.items():
        path = folder / name
        try:
            made += _make_folders(path.parent)
            with path.open("x", encoding="utf-8", newline="\n") as file:
                made.append(path)
                file.write(text)
        except OSError as failure:
            _remove(made)
            wrong = f"it cannot be written ({failure.strerror or failure})"
            remedy = "make its folder a writable folder"
            raise ConfigError([Problem(str(path), "", wrong, remedy)]) from failure


def _make_folders(folder: Path) -> list[Path]:
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _remove(made: list[Path]) -> None:
    for path in reversed(made):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
