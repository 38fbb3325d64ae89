"""Removes credentials, and the secrets of functions' settings, from logs."""

import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, SecretBytes, SecretStr

REDACTED = "***"
SHORTEST_SECRET = 6
"""The least characters of a secret that is masked in every text. A shorter secret may equal a word
or a number: masking it would make logs unreadable and reveal the secret."""

_SECRET_WORDS = frozenset(
    (
        *("apikey", "authorization", "cookie", "cookies", "credential", "credentials", "creds"),
        *("dsn", "jwt", "key", "keys", "nkey", "passphrase", "passwd", "password", "passwords"),
        *("pwd", "secret", "secrets", "seed", "token", "tokens"),
    )
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_USERINFO = re.compile(r"(?<=://)[^/\s'\"<>]*@")
_ASSIGNED = re.compile(
    r"(?i)\b((?:[a-z0-9]+[_-])*(?:password|passwd|pwd|token|secret|dsn|apikey|api[_-]key|"
    r"authorization)[\"']?\s*[=:]\s*)(?:(?:bearer|basic)\s+)?(?:\"[^\"]*\"|'[^']*'|[^\s,;&'\"]+)"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[a-z0-9._~+/=-]{8,}")
_INPUT = re.compile(r"input_value=.*?, input_type=")
_known: tuple[str, ...] = ()


def hide(secrets: Iterable[str]) -> None:
    """Remove these texts from now on from all logs and stored failures of this process."""
    global _known  # noqa: PLW0603 - logs belong to the process
    found = {each for each in secrets if len(each) >= SHORTEST_SECRET}
    # Longer secrets first, since one secret may be part of another.
    _known = tuple(sorted({*_known, *found}, key=len, reverse=True))


def secrets_in(value: object) -> Iterator[str]:
    """Iterate over the secrets in a pydantic model, a mapping or a collection."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, SecretBytes):
        yield value.get_secret_value().decode(errors="replace")
    elif isinstance(value, BaseModel):
        yield from secrets_in([getattr(value, name) for name in type(value).model_fields])
    elif isinstance(value, Mapping):
        yield from secrets_in(list(value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from secrets_in(item)


def passwords_in(address: str | None) -> Iterator[str]:
    """The passwords in a server's address, or in several addresses separated by commas."""
    for each in (address or "").split(","):
        try:
            parts = urlsplit(each.strip())
            password, user = parts.password, parts.username
        except ValueError:
            continue
        # A password that equals the user's or the database's name is a common word and not masked.
        if password and unquote(password) not in (user, parts.path.strip("/")):
            yield from {password, unquote(password), quote(unquote(password), safe="")}


def mask(text: str) -> str:
    """The text without known secrets, and without the values that pydantic quotes."""
    for secret in _known:
        if secret in text:
            text = text.replace(secret, REDACTED)
    return _INPUT.sub("input_value=***, input_type=", text) if "input_value=" in text else text


def is_secret_name(field: str) -> bool:
    """Whether a word of the field's name says that it is a secret: `admin_key`, `authToken`."""
    return any(word.lower() in _SECRET_WORDS for word in _WORD.findall(field))


def scrub(text: str) -> str:
    """The text without user and password in URLs, and without `password=…` and bearer tokens."""
    text = mask(text)
    if "://" in text:
        text = _USERINFO.sub(f"{REDACTED}@", text)
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(rf"\1{REDACTED}", text)
    return _BEARER.sub(rf"\1{REDACTED}", text)
