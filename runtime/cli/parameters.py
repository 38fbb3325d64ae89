"""Types of command-line arguments, checked before a server is contacted."""

import re
from datetime import UTC, datetime, timedelta

import click
from click.shell_completion import CompletionItem

from runtime.manifest.model import RateSpec
from runtime.manifest.rate import parse_rate
from runtime.manifest.values import NAME_PATTERN, SUBJECT_PATTERN, check_subject, parse_duration


class _Sequence(click.IntRange):
    """A sequence: the number in the first column of a list."""

    name = "sequence"


SEQUENCE = _Sequence(min=1)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


class FunctionName(click.types.StringParamType):
    """A function's name, without wildcards: the name becomes part of a subject.

    The shell completes it with the functions of the server, and with those of the manifests in the
    current folder if the command loads them.
    """

    name = "function"

    def __init__(self, *, is_local: bool = False) -> None:
        self.is_local = is_local

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name.

        Raises:
            click.BadParameter: no function can have this name.
        """
        if not re.fullmatch(NAME_PATTERN, value):
            raise click.BadParameter(f"{value!r} cannot be a function's name", ctx, param)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so; none when NATS does not answer at once."""
        # Imported here: only the shell's request needs it.
        from runtime.cli.function_names import find_names  # noqa: PLC0415

        names = find_names(ctx.params.get("nats_url"), is_local=self.is_local)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class FunctionPattern(FunctionName):
    """A pattern of functions' names with `*` and `?`; completed as a name is."""

    name = "pattern"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The pattern.

        Raises:
            click.BadParameter: no function can match it.
        """
        if not re.fullmatch(r"[A-Za-z0-9_*?-]{1,255}", value):
            raise click.BadParameter(f"{value!r} matches no function's name", ctx, param)
        return value


FUNCTION_NAME = FunctionName()
FUNCTION_PATTERN = FunctionPattern()
LOCAL_FUNCTION_NAME = FunctionName(is_local=True)


def subject_pattern(text: str) -> str:
    """Parse a subject, which may have `*` and `>`.

    Raises:
        click.BadParameter: the text is not a valid subject.
    """
    if not re.fullmatch(SUBJECT_PATTERN, text):
        raise click.BadParameter(f"{text!r} is not a subject")
    try:
        return check_subject(text)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong)) from wrong


def plain_subject(text: str) -> str:
    """Parse a subject without wildcards.

    Raises:
        click.BadParameter: the text is not one.
    """
    subject = subject_pattern(text)
    if {"*", ">"} & set(subject.split(".")):
        raise click.BadParameter(f"{text!r} has a wildcard; a message has one subject")
    return subject


def stored_message(text: str) -> tuple[str, int]:
    """Parse the place of a stored message, `STREAM:SEQ`.

    Raises:
        click.BadParameter: the text is not one.
    """
    found = re.fullmatch(r"([^\s.*>/\\:]{1,255}):([1-9][0-9]{0,18})", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a stream and a sequence, such as ORDERS:17")
    return found[1], int(found[2])


def header(text: str) -> tuple[str, str]:
    """Parse a header, `NAME:VALUE`.

    Raises:
        click.BadParameter: the text is not one.
    """
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[!-9;-~]+", name):
        raise click.BadParameter(f"{text!r} is not a header, such as Trace:t1")
    return name, value.strip()


def span(text: str) -> timedelta:
    """Parse a duration such as `90s` or `1h30m`.

    Raises:
        click.BadParameter: the text is not a duration.
    """
    try:
        return timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError) as wrong:
        raise click.BadParameter(str(wrong)) from wrong


def moment(text: str) -> datetime:
    """Parse a point in time: an age such as `2h`, or RFC 3339, in UTC without an offset.

    Raises:
        click.BadParameter: the text is neither.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return _ago(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def place(text: str) -> int | datetime:
    """Parse a place in a stream: a sequence, or a point in time as `moment`.

    Raises:
        click.BadParameter: the text is neither.
    """
    if re.fullmatch(r"[0-9]{1,19}", text):
        if not int(text):
            raise click.BadParameter("the first sequence is 1")
        return int(text)
    return moment(text)


def rate(text: str) -> RateSpec:
    """Parse a rate such as `50/s`.

    Raises:
        click.BadParameter: the text is not a rate.
    """
    try:
        parse_rate(text)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong)) from wrong
    return RateSpec.model_validate({"limit": text})


def _ago(text: str) -> datetime:
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError) as wrong:
        raise click.BadParameter(
            f"{text!r} is not a time; write an age like 30m or 2d, or 2026-08-01T12:00:00Z"
        ) from wrong
