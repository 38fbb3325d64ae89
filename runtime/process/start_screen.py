"""The screens on a terminal when the host is ready, and when it drains."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime.broker.field_text import show_duration
from runtime.broker.stream_configs import ns
from runtime.embedded.servers import EmbeddedServers
from runtime.manifest.model import FunctionSpec, Manifest
from runtime.observe.console import printable
from runtime.settings import HostSettings

DISTRIBUTION = "nats-function-runtime"
LOOPBACK = "127.0.0.1"
MAX_WIDTH = 100
MAX_PATHS = 3
MAX_LINES = 3
"""The most lines for the names of one kind of function; `runtime ls` shows all."""

_INDENT = 2
_LABEL = 12
_COUNT = 4
_GAP = 2


@dataclass(frozen=True, slots=True)
class StartScreen:
    """The screen of one start, and the values that it shows.

    Attributes:
        manifest: the served manifest.
        settings: the host's settings, with the addresses of servers that are not embedded.
        paths: files and folders of the manifests.
        workers: number of processes for the functions that are not isolated.
        nats: `host:port` of the embedded nats-server; None when there is none.
        mqtt: likewise of its MQTT listener.
        database: whether PostgreSQL is embedded; None when no function uses it.
        keys: files with the keys that the host created.
    """

    manifest: Manifest
    settings: HostSettings
    paths: tuple[Path, ...]
    workers: int
    nats: str | None
    mqtt: str | None
    database: bool | None
    keys: tuple[Path, ...]

    def draw(self, *, admin_port: int, seconds: float, width: int, colors: bool) -> str:
        """Render the screen; `Ready` is its last line."""
        console = Console(
            width=min(width, MAX_WIDTH),
            force_terminal=colors,
            no_color=not colors,
            highlight=False,
            legacy_windows=False,
        )
        room = console.width - _INDENT - _LABEL - _COUNT - _GAP
        with console.capture() as captured:
            console.print()
            console.print(_indented(self._title()))
            console.print()
            console.print(self._grid(self._served(room)))
            console.print()
            console.print(self._grid(self._places(admin_port)))
            console.print()
            console.print(Text(f"{' ' * _INDENT}Ctrl-C drains, a second one stops at once.", "dim"))
            console.print(
                Text(" " * _INDENT).append("Ready", "bold green").append(f" in {seconds:.1f} s")
            )
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def draw_drain(self, *, held: Mapping[str, int] | None, width: int, colors: bool) -> str:
        """Render the lines that say what a drain waits for.

        Args:
            held: number of held messages by function; None when only the workers know.
            width: columns of the terminal.
            colors: whether to use colours.
        """
        grace = f"for {self.settings.grace_s:g} s at most"
        processes = self._processes()
        if held is None:
            waits = f"{processes} processes finish their messages, {grace}."
        elif total := sum(held.values()):
            by_function = ", ".join(f"{name} {number:,}" for name, number in held.items() if number)
            messages = "held message is" if total == 1 else "held messages are"
            waits = f"{total:,} {messages} finished first, {grace} ({by_function})."
        else:
            waits = f"no message is held; requests under way are answered first, {grace}."
        console = Console(
            width=min(width, MAX_WIDTH), force_terminal=colors, no_color=not colors, highlight=False
        )
        with console.capture() as captured:
            text = Text("Draining", "bold yellow").append(": ", "default")
            text.append(waits, "default").append(
                "\nCtrl-C again stops at once; unfinished messages are then delivered again.", "dim"
            )
            console.print(_indented(text))
        return "\n" + "\n".join(line.rstrip() for line in captured.get().splitlines())

    def _title(self) -> Text:
        title = Text().append(DISTRIBUTION, "bold").append(f" {version(DISTRIBUTION)}")
        shown = [printable(_name(path)) for path in self.paths]
        more = f" and {len(shown) - MAX_PATHS} more" if len(shown) > MAX_PATHS else ""
        title.append(f" serves {', '.join(shown[:MAX_PATHS])}{more}", "dim")
        if (processes := self._processes()) > 1:
            title.append(f" in {processes} processes", "dim")
        return title

    def _processes(self) -> int:
        isolated = sum(spec.isolate for spec in self.manifest.functions.values())
        return self.workers + isolated

    def _grid(self, rows: Iterator[tuple[str, str, Text]]) -> Table:
        grid = Table.grid(padding=0)
        for width in (_INDENT, _LABEL, _COUNT, _GAP, None):
            grid.add_column(width=width, justify="right" if width == _COUNT else "left")
        for label, count, value in rows:
            grid.add_row("", Text(label, "bold"), Text(count, "cyan"), "", value)
        return grid

    def _served(self, room: int) -> Iterator[tuple[str, str, Text]]:
        functions = self.manifest.functions
        of_kind = {
            "Consumers": [name for name, spec in functions.items() if spec.consumer],
            "Schedules": [
                f"{name} ({_show_trigger(spec)})"
                for name, spec in functions.items()
                if spec.schedule
            ],
            "Services": [name for name, spec in functions.items() if spec.service],
        }
        services = Counter(
            spec.endpoint.service or name for name, spec in functions.items() if spec.endpoint
        )
        yield from _kind("Streams", [*self.manifest.streams], room)
        yield from _kind("Consumers", of_kind["Consumers"], room)
        yield from _kind("Schedules", of_kind["Schedules"], room)
        if services:
            grouped = [f"{name} {number}" for name, number in services.most_common()]
            of_services = f"of {', '.join(services)}" if len(services) == 1 else "of "
            shown = of_services if len(services) == 1 else "of " + _fit(grouped, room - 3, 1)
            yield "Endpoints", f"{services.total():,}", Text(shown)
        yield from _kind("Services", of_kind["Services"], room)

    def _places(self, admin_port: int) -> Iterator[tuple[str, str, Text]]:
        for spec in self.manifest.functions.values():
            for label, url in spec.links.items():
                if urlsplit(url).port != 0:
                    yield printable(label), "", _link(url)
        admin = f"http://{LOOPBACK}:{admin_port}"
        doors = [_link(f"{admin}/readyz"), _link(f"{admin}/metrics", shown="/metrics")]
        yield "Admin", "", Text("  ").join(doors)
        yield "NATS", "", self._nats()
        if self.mqtt:
            yield "MQTT", "", Text(f"mqtt://{self.mqtt}").append("  embedded", "dim")
        if self.database is not None:
            address = Text("embedded; runtime psql", "dim") if self.database else self._database()
            yield "PostgreSQL", "", address
        if self.keys:
            folder = Text(f" in {printable(_short(self.keys[0].parent))}", "dim")
            names = Text(", ".join(printable(key.name) for key in self.keys))
            yield "Keys", "", names.append_text(folder)

    def _nats(self) -> Text:
        if self.nats:
            return Text(f"nats://{self.nats}").append("  embedded; runtime nats-context", "dim")
        given = self.settings.nats_url.get_secret_value() if self.settings.nats_url else ""
        return Text(printable(" ".join(_without_user(url.strip()) for url in given.split(","))))

    def _database(self) -> Text:
        url = self.settings.database_url
        given = url.get_secret_value() if url else ""
        # A DSN of the form `host=… password=…` is not parsed.
        return Text(printable(_without_user(given)) if "://" in given else "not embedded")


def screen_of(
    manifest: Manifest,
    settings: HostSettings,
    paths: tuple[Path, ...],
    workers: int,
    servers: EmbeddedServers,
) -> StartScreen:
    """Build the screen of a start, after the embedded servers have started."""
    made = {"admin.key": settings.admin_key, "mqtt.password": settings.mqtt_admin_password}
    keys = [settings.data_dir / name for name, given in made.items() if given is None]
    nats = servers.nats
    is_used = bool(manifest.migrations) or any(
        "postgres" in spec.uses for spec in manifest.functions.values()
    )
    return StartScreen(
        manifest,
        settings,
        paths,
        workers,
        nats=f"{LOOPBACK}:{nats.ports.nats}" if nats else None,
        mqtt=f"{LOOPBACK}:{nats.ports.mqtt}" if nats else None,
        database=servers.postgres is not None if is_used else None,
        keys=tuple(key for key in keys if key.exists()) if nats or servers.postgres else (),
    )


def _kind(label: str, names: Sequence[str], room: int) -> Iterator[tuple[str, str, Text]]:
    if names:
        yield label, f"{len(names):,}", Text(_fit(names, room, MAX_LINES))


def _fit(names: Sequence[str], room: int, lines: int) -> str:
    """Format the names in `lines` lines of `room` columns, and count the names that do not fit."""
    drawn = [""]
    for number, name in enumerate(map(printable, names)):
        left = f"and {len(names) - number} more"
        added = f"{drawn[-1]}, {name}" if drawn[-1] else name
        is_last_line = len(drawn) == lines
        reserve = cell_len(left) + 2 if is_last_line and number < len(names) - 1 else 1
        if not drawn[-1] or cell_len(added) + reserve <= room:
            drawn[-1] = added
        elif is_last_line:
            drawn[-1] += f", {left}"
            break
        else:
            drawn[-1] += ","
            drawn.append(name)
    return "\n".join(drawn)


def _show_trigger(spec: FunctionSpec) -> str:
    if spec.schedule is None:
        return ""
    if spec.schedule.every is None:
        return printable(spec.schedule.cron or "")
    return f"every {show_duration(ns(spec.schedule.every))}"


def _link(url: str, *, shown: str = "") -> Text:
    return Text(printable(shown or url), style=f"blue underline link {url}")


def _indented(text: Text) -> Table:
    grid = Table.grid(padding=0)
    grid.add_column(width=_INDENT)
    grid.add_column()
    grid.add_row(Text(""), text)
    return grid


def _name(manifest: Path) -> str:
    """A manifest's path as given; only the last part of an absolute path."""
    shown = manifest.name if manifest.is_absolute() else str(manifest)
    return f"{shown}/" if manifest.is_dir() else shown


def _short(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _without_user(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"
