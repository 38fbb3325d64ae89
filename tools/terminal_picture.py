"""Draws docs/terminal.svg: `python -m tools.terminal_picture` plays the README on a terminal.

It serves the README's function with --reload, publishes a wish, breaks the file, mends it, and
draws what the terminal then shows. The ports of the host must be free.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from tests.support.documentation import ROOT, RUNTIME, write_files
from tests.support.terminal import on_terminal

_PICTURE = ROOT / "docs" / "terminal.svg"
_COLUMNS = 96
_NATS = ROOT / ".tools" / "nats"
_ERASED = re.compile(r"[^\n]*\r\x1b\[K")
_NOT_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b\]8;[^\x07\x1b]*(?:\x07|\x1b\\)")
_ELSEWHERE = re.compile(r"\s*(?:@font-face \{.*?\}|<!--.*?-->)", re.DOTALL)
_LINE = 'f"Hello, {event.data.name}!"'
_THEME = TerminalTheme(
    (22, 27, 34),
    (201, 209, 217),
    [(72, 79, 88), (255, 123, 114), (126, 231, 135), (242, 204, 96),
     (121, 192, 255), (210, 168, 255), (86, 212, 221), (201, 209, 217)],
)  # fmt: skip


def play(folder: Path) -> str:
    """What the host's terminal shows, with its colours."""
    write_files(ROOT / "README.md", folder)
    file = folder / "hello.py"
    good = file.read_text("utf-8")
    broken = good.replace(_LINE, _LINE.replace("}!", "!"))
    better = good.replace(_LINE, _LINE.replace("Hello", "Good morning"))
    with on_terminal(
        [RUNTIME, "serve", "hello.yaml", "--reload"],
        columns=_COLUMNS,
        folder=folder,
        environment={
            name: value for name, value in os.environ.items() if name.startswith("RUNTIME_")
        },
    ) as terminal:
        terminal.wait_for("Ready in")
        file.write_text(broken, encoding="utf-8")
        terminal.wait_for(r"^> ")
        file.write_text(better, encoding="utf-8")
        terminal.wait_for("Swapped")
        publish("no JSON")
        terminal.wait_for("given up to the dead letters")
        shown = terminal.raw
        terminal.press_ctrl_c()
        terminal.wait_until_ended()
    return shown


def publish(payload: str) -> None:
    """Publish a wish."""
    port = os.environ.get("RUNTIME_NATS_PORT", "4222")
    command = [
        str(_NATS),
        "--server",
        f"nats://127.0.0.1:{port}",
        "pub",
        "greetings.wanted",
        payload,
    ]
    subprocess.run(command, check=True, capture_output=True)


def draw(shown: str) -> str:
    """The picture of what a terminal shows, as SVG."""
    text = _ERASED.sub("", shown.replace("\r\n", "\n"))
    prompt = "\x1b[2m$\x1b[0m runtime serve hello.yaml --reload\n"
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(prompt + _NOT_COLOUR.sub("", text).strip("\n")))
    picture = console.export_svg(title="hello.yaml", theme=_THEME, unique_id="terminal")
    # A page with the picture should load no font from elsewhere: any of fixed width will do.
    return _ELSEWHERE.sub("", picture).replace("Fira Code", "DejaVu Sans Mono")


def main() -> None:
    """Draw the picture."""
    with tempfile.TemporaryDirectory(prefix="runtime-picture-") as folder:
        # When it runs as root, the servers run as another user, which must traverse the folder.
        Path(folder).chmod(0o711)
        _PICTURE.write_text(draw(play(Path(folder))), encoding="utf-8")
    sys.stdout.write(f"{_PICTURE.relative_to(ROOT)}: written\n")


if __name__ == "__main__":
    main()
