"""Arguments with a form of their own, checked before any server is asked."""

import re
from datetime import UTC, datetime, timedelta

import click

from runtime.manifest.model import NAME_PATTERN, SUBJECT_PATTERN, check_subject, parse_duration


class _Sequence(click.IntRange):
    """The number in the first column of a list."""

    name = "sequence"


SEQUENCE = _Sequence(min=1)


def function_name(text: str) -> str:
    """A function's name: no wildcard may hide in it, as it becomes part of a subject.

    Raises:
        click.BadParameter: it could be none.
    """
    if not re.fullmatch(NAME_PATTERN, text):
        raise click.BadParameter(f"{text!r} is no function's name")
    return text


def subject_pattern(text: str) -> str:
    """A subject, in which `*` and `>` may stand.

    Raises:
        click.BadParameter: NATS takes no such subject.
    """
    if not re.fullmatch(SUBJECT_PATTERN, text):
        raise click.BadParameter(f"{text!r} is no subject")
    try:
        return check_subject(text)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong)) from wrong


def span(text: str) -> timedelta:
    """A duration such as `90s` or `1h30m`.

    Raises:
        click.BadParameter: it is none.
    """
    try:
        return timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError) as wrong:
        raise click.BadParameter(str(wrong)) from wrong


def moment(text: str) -> datetime:
    """A point in time: an age such as `2h`, or RFC 3339; without an offset it is UTC.

    Raises:
        click.BadParameter: it is neither.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return _ago(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _ago(text: str) -> datetime:
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError) as wrong:
        raise click.BadParameter(
            f"{text!r} is no time; write an age like 30m or 2d, or 2026-08-01T12:00:00Z"
        ) from wrong
