"""`runtime completion`: prints the script with which a shell completes commands and names."""

import click
from click.shell_completion import ShellComplete, get_completion_class

SHELLS = ("bash", "zsh", "fish")
_PROGRAM = "runtime"
_VARIABLE = "_RUNTIME_COMPLETE"
"""Set by the script. Not `RUNTIME_…`: those are settings of the host."""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and names of functions in SHELL.

    \b
    bash, in ~/.bashrc:  eval "$(runtime completion bash)"
    zsh, in ~/.zshrc:    eval "$(runtime completion zsh)"
    fish:  runtime completion fish > ~/.config/fish/completions/runtime.fish

    Names of functions are asked of NATS, for at most a second, and also read from manifests/ where
    the command loads them. When NATS is away, only these are completed, without a message.
    """  # noqa: D301 - click reads the character, which a raw text does not have
    # Imported here: the group imports this module.
    from runtime.cli import main  # noqa: PLC0415

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"there is no script for {shell}")
    click.echo(_source(found(main, {}, _PROGRAM, _VARIABLE)))


def _source(script: ShellComplete) -> str:
    """The script, without the check of the shell's version, which starts another shell."""
    return script.source_template % script.source_vars()
