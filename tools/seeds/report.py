"""Prints verdicts, in lines of at most 80 columns."""

import textwrap
from collections.abc import Iterable

from tools.seeds.judging import Verdict

COLUMNS = 80
_INDENT = " " * 9


def draw(verdict: Verdict) -> str:
    """The lines for one command."""
    lines = [f"{verdict.outcome:<9}{shorten(verdict.command, COLUMNS - len(_INDENT))}"]
    expected = verdict.expectation
    if verdict.outcome == "fails":
        lines += _wrap(verdict.reason)
        lines += [_INDENT + cut(f"| {line}", COLUMNS - len(_INDENT))
                  for line in verdict.output.splitlines()]  # fmt: skip
    elif expected.differs is not None:
        lines += _wrap(f"why: {expected.differs.why}")
        if expected.differs.on_plain_server:
            lines += _wrap("It fails on a plain nats-server, too.")
        lines += _wrap(f"instead, and it passes: {without_container(expected.differs.instead)}")
    elif expected.note:
        lines += _wrap(expected.note)
    return "\n".join(lines)


def summarize(verdicts: Iterable[Verdict]) -> str:
    """The last line."""
    outcomes = [verdict.outcome for verdict in verdicts]
    counts = {name: outcomes.count(name) for name in ("pass", "differs", "fails")}
    return (
        f"{len(outcomes)} commands: {counts['pass']} pass, {counts['differs']} differ as decided, "
        f"{counts['fails']} {'fails' if counts['fails'] == 1 else 'fail'}."
    )


def shorten(command: str, columns: int) -> str:
    """A command on one line, as much of it as fits."""
    return cut(without_container(command), columns)


def without_container(command: str) -> str:
    """A command on one line, without what carries it into a container."""
    text = " ".join(command.replace("\\\n", " ").split())
    for prefix in (
        "docker exec iot-nats-init ",
        "kubectl exec -n nats $NATS_BOX -- ",
        "--server nats://nats:4222 ",
    ):
        text = text.replace(prefix, "")
    return text


def cut(text: str, columns: int) -> str:
    """The text, with … in place of what does not fit."""
    return text if len(text) <= columns else text[: columns - 1] + "…"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(
        text, COLUMNS, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
    )
