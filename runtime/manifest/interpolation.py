"""Replaces `${NAME}` in a manifest's text, and resolves references to secrets."""

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

_REFERENCE = re.compile(r"\$(?P<escape>\$\{)|\$\{(?P<inner>[^}]*)(?P<close>\}?)")
_INNER = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-.*)?", re.DOTALL)
_SECRET_FILE_BYTES = 1_000_000

SECRET_KEYS = ("from_env", "from_file")


class Unresolvable(Exception):  # noqa: N818 - not raised beyond this package
    """A reference cannot be resolved: `wrong` and `remedy` as in a Problem, without any value."""

    def __init__(self, wrong: str, remedy: str) -> None:
        self.wrong = wrong
        self.remedy = remedy
        super().__init__(wrong)


class Absent(Unresolvable):
    """The variable or file of a secret is not there, or empty: allowed for an optional one."""


def interpolate(text: str, environment: Mapping[str, str]) -> str:
    """Replace `${NAME}` and `${NAME:-default}` in the text, and `$${` by `${`.

    The default is used when the variable is unset or empty, as in a shell. Replaced text is not
    interpolated again.

    Raises:
        Unresolvable: a variable is not set, or a reference is malformed.
    """

    def fill(found: re.Match[str]) -> str:
        if found["escape"]:
            return "${"
        inner = _INNER.fullmatch(found["inner"])
        if not found["close"] or inner is None:
            raise Unresolvable(
                f"{found[0]!r} is not a reference",
                "write ${NAME} or ${NAME:-default}, or $${ for the two characters themselves",
            )
        name, default = inner["name"], inner["default"]
        value = environment.get(name)
        if default is not None and not value:
            return default.removeprefix(":-")
        if value is None:
            raise Unresolvable(
                f"the variable {name} is not set",
                f"set it, or give a default: ${{{name}:-…}}",
            )
        return value

    return _REFERENCE.sub(fill, text)


def resolve_secret(
    key: str, target: str, *, environment: Mapping[str, str], folder: Path
) -> SecretStr:
    """Read the secret that `{from_env: NAME}` or `{from_file: PATH}` names.

    A relative PATH is relative to `folder`, the manifest's folder.

    Raises:
        Absent: the variable or file does not exist, or is empty.
        Unresolvable: the file cannot be read, or is no text.
    """
    if key == "from_env":
        secret = environment.get(target, "")
        if not secret:
            state = "empty" if target in environment else "not set"
            raise Absent(f"the variable {target} is {state}", "set it to the secret")
        return SecretStr(secret)
    return SecretStr(_read_secret(folder / target))


def _read_secret(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_SECRET_FILE_BYTES)
        secret = content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        kind = Absent if isinstance(error, FileNotFoundError) else Unresolvable
        raise kind(
            f"{path} cannot be read: {error.strerror}", "name a file that holds the secret"
        ) from None
    except UnicodeDecodeError:
        raise Unresolvable(f"{path} is not UTF-8 text", "store the secret as text") from None
    if not secret:
        raise Absent(f"{path} is empty", "write the secret into it")
    return secret
