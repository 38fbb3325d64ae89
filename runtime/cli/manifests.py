"""Collects the manifests of a command: a user's own, and shipped ones named by `--with`."""

import re
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import click

import runtime

SHIPPED = Path(runtime.__file__).parent / "shipped_manifests"

GROUPS: dict[str, tuple[str, ...]] = {
    "backbone": (
        "commands",
        "device_auth",
        "gateway",
        "management",
        "presence",
        "routes",
        "shadow",
        "telemetry",
        "unmapped",
    ),
}
"""Names of groups of shipped manifests. The runtime knows only the names of the files."""


def shipped_names() -> list[str]:
    """The names that `--with` accepts: groups first, then single manifests."""
    return [*GROUPS, *sorted(path.stem for path in SHIPPED.glob("*.yaml"))]


def shipped_manifests(names: Iterable[str]) -> list[Path]:
    """The files that `--with` names, without duplicates."""
    stems = [stem for name in names for stem in GROUPS.get(name, (name,))]
    return [SHIPPED / f"{stem}.yaml" for stem in dict.fromkeys(stems)]


def find_shipped(function: str) -> str | None:
    """The shipped manifest that has a function of this name."""
    entry = re.compile(rf"^  {re.escape(function)}:", re.MULTILINE)
    found = (path.stem for path in sorted(SHIPPED.glob("*.yaml")) if entry.search(path.read_text()))
    return next(found, None)


def takes_shipped(help_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add `--with`, which names shipped manifests, to a command, which gets them as `shipped`."""
    names = shipped_names()
    return click.option(
        "--with", "shipped", multiple=True, metavar="NAME", type=click.Choice(names), help=help_text
    )


def takes_manifests(command: Callable[..., None]) -> Callable[..., None]:
    """Add the arguments MANIFESTS and `--with` to a command, which gets the paths `manifests`."""

    @click.argument("manifests", nargs=-1, type=click.Path(path_type=Path))
    @takes_shipped(f"Add shipped manifests: {', '.join(shipped_names())}. May be repeated.")
    @wraps(command)
    def combined(manifests: tuple[Path, ...], shipped: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401
        paths = (*manifests, *shipped_manifests(shipped))
        if not paths:
            raise click.UsageError(
                "Name a manifest, a folder of manifests, or --with a shipped one."
            )
        command(manifests=paths, **options)

    return combined
