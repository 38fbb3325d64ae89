"""Devices' tokens: which may be given, how they are made, and what is stored of them."""

import hashlib
import re
import secrets
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from runtime import Reject

_TOKEN_BYTES = 24
_TOKEN = re.compile(r"[\x21-\x7e]{1,256}")


def _check_token(token: SecretStr) -> SecretStr:
    if not _TOKEN.fullmatch(token.get_secret_value()):
        raise ValueError("a token has 1 to 256 visible ASCII characters, as a header must carry it")
    return token


Token = Annotated[SecretStr, AfterValidator(_check_token)]


class DeviceSettings(BaseModel):
    """How long a token must be that is not generated: short ones can be guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_token_length: Annotated[int, Field(ge=1, le=256)] = 16


def make_token() -> str:
    """A new random token."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def choose_token(given: SecretStr | None, settings: DeviceSettings) -> str:
    """The given token, or a new random one.

    Raises:
        Reject: `TOKEN_TOO_SHORT`.
    """
    if given is None:
        return make_token()
    if len(token := given.get_secret_value()) < settings.min_token_length:
        raise Reject("TOKEN_TOO_SHORT", f"{too_short(settings.min_token_length)}.", status=422)
    return token


def too_short(min_length: int) -> str:
    """Says that a token is too short."""
    return f"A token must have at least {min_length} characters"


def hash_token(token: str) -> bytes:
    """The SHA-256 by which the registry knows a token."""
    return hashlib.sha256(token.encode()).digest()


__all__ = ["DeviceSettings", "Token", "choose_token", "hash_token", "make_token", "too_short"]
