"""Runs one command of a document, and says whether it does what is expected of it."""

from dataclasses import dataclass
from typing import Literal

from tools.seeds.documents import Difference, Expectation
from tools.seeds.shell import Ran, Shell

Outcome = Literal["pass", "differs", "fails"]
_SHOWN_LINES = 12


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a command.

    Attributes:
        command: the command as its document has it.
        outcome: `differs` for a difference that is decided, `fails` for any other.
        expectation: what was expected.
        reason: why it fails; empty otherwise.
        output: the end of what it printed when it fails.
    """

    command: str
    outcome: Outcome
    expectation: Expectation
    reason: str = ""
    output: str = ""


def judge(command: str, expected: Expectation, host: Shell, plain: Shell) -> Verdict:
    """Run a command, and what its expectation names beside it.

    Args:
        command: the command as its document has it.
        expected: what is expected.
        host: a shell with the addresses of the host.
        plain: one with those of a nats-server that has no configuration of ours.
    """
    outcome: Outcome = "pass"
    instead = command
    if (difference := expected.differs) is not None:
        outcome, instead = "differs", difference.instead
        for shell, where in _runs_as_written(difference, host, plain):
            ran = _run_as_written(command, expected, difference, shell)
            if not ran.shows(difference.fails):
                fault = f"as written it does not fail {where} as the list of differences says"
                return _failed(command, expected, fault, ran)
    ran = _run(instead, expected, host)
    if (reason := _fault(ran, expected)) is not None:
        return _failed(command, expected, reason, ran)
    if expected.effect is not None:
        ran = host.run_until(expected.effect.run, expected.effect.shows)
        if not ran.shows(expected.effect.shows):
            return _failed(command, expected, f"{expected.effect.run!r} does not show it", ran)
    return Verdict(command, outcome, expected)


def _runs_as_written(difference: Difference, host: Shell, plain: Shell) -> list[tuple[Shell, str]]:
    runs = [(host, "here")] if difference.here else []
    if difference.on_plain_server:
        runs.append((plain, "on a plain nats-server"))
    return runs


def _run_as_written(
    command: str, expected: Expectation, difference: Difference, shell: Shell
) -> Ran:
    if expected.listens:
        return shell.listen(command, difference.fails)
    ran = shell.run(command)
    return shell.run(difference.shown_by) if difference.shown_by else ran


def _run(command: str, expected: Expectation, shell: Shell) -> Ran:
    if expected.listens:
        return shell.listen(command, expected.shows, expected.publish)
    if expected.again:
        return shell.run_until(command, expected.shows)
    return shell.run(command)


def _fault(ran: Ran, expected: Expectation) -> str | None:
    if ran.code is None and not expected.listens:
        return "it has not ended after a minute"
    if ran.code:
        return f"exit code {ran.code}"
    return None if ran.shows(expected.shows) else f"it does not show {expected.shows!r}"


def _failed(command: str, expected: Expectation, reason: str, ran: Ran) -> Verdict:
    lines = ran.output.strip().splitlines()[-_SHOWN_LINES:]
    return Verdict(command, "fails", expected, reason, "\n".join(lines))
