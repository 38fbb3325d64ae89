import re
import shlex

import click
import pytest

from runtime.cli import main
from tests.support.documentation import ROOT, read_blocks

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMANDS = sorted(
    {
        line
        for page in PAGES
        for block in read_blocks(page)
        if block.language == "console"
        for line in re.findall(r"^\$ runtime (.+)$", block.text, re.MULTILINE)
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_line_takes_every_command_that_the_documents_show(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0], comments=True)
    command: click.Command = main

    while isinstance(command, click.Group):
        _, found, words = command.resolve_command(click.Context(command), words)
        assert found is not None
        command = found

    command.make_context(command.name, words)


def test_every_command_is_on_a_page() -> None:
    shown = {tuple(line.split()[:2]) for line in COMMANDS}
    names = {words[0] for words in shown}
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    grouped = {
        (name, below)
        for name, command in commands.items()
        if isinstance(command, click.Group)
        for below in command.commands
    }

    assert commands.keys() <= names
    assert grouped <= shown
