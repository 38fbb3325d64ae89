"""The options of `runtime serve`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.settings import HostSettings


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of `runtime serve`.

    Attributes:
        paths: manifest files and folders.
        settings: the host's settings.
        environment: the variables for the manifests.
        workers: number of processes for the functions that are not isolated.
        bind_only: create and change no stream and no consumer.
        reload: reload functions when files change.
        reload_polls: look at the files for that, instead of listening to events.
    """

    paths: tuple[Path, ...]
    settings: HostSettings
    environment: Mapping[str, str]
    workers: int = 1
    bind_only: bool = False
    reload: bool = False
    reload_polls: bool = False


__all__ = ["ServeOptions"]
