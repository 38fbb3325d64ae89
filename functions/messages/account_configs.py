"""The configuration of a provider account by kind, and which parts of it are secrets."""

import base64
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
)

from functions.domain.mail.smtp import SmtpServer
from functions.domain.signing_keys import read_signing_key
from functions.domain.values import NO_NUL
from functions.domain.webhooks import (
    MAX_HEADERS,
    SECRET_PREFIX,
    HeaderName,
    HeaderValue,
    check_secret,
    check_url,
)
from functions.messages.contents import EmailAddress, HeaderText, Kind, SmsSender

HIDDEN = "***"
_SECRET_BYTES = 32
_Text = Annotated[str, StringConstraints(max_length=255, pattern=NO_NUL)]


def _check_pem(text: str) -> str:
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise ValueError("ca must hold certificates in PEM form")
    return text


def _check_signing_key(key: SecretStr) -> SecretStr:
    read_signing_key(key.get_secret_value())
    return key


class AccountConfig(BaseModel):
    """Base of all configurations. An unknown field is an error; no error repeats a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class SmtpAccount(AccountConfig):
    """An account for email: an SMTP server.

    Attributes:
        security: `starttls` and `tls` never go on without a verified, encrypted connection.
        sender: the address to send from, of messages that state none.
        ca: PEM certificates to trust in place of the system's.
        max_connections: connections at a time from one process.
    """

    host: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,253}$")]
    port: Annotated[int, Field(ge=1, le=65_535)] = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: _Text | None = None
    password: SecretStr | None = None
    sender: EmailAddress
    sender_name: HeaderText = ""
    ca: (
        Annotated[
            str, StringConstraints(max_length=65_536, pattern=NO_NUL), AfterValidator(_check_pem)
        ]
        | None
    ) = None
    max_connections: Annotated[int, Field(ge=1, le=100)] = 4

    def server(self) -> SmtpServer:
        """How the server is reached."""
        return SmtpServer(
            self.host,
            self.port,
            self.security,
            self.username,
            self.password.get_secret_value() if self.password else None,
            ca=self.ca,
            max_connections=self.max_connections,
        )


class SmsAccount(AccountConfig):
    """An account for text messages: one of Twilio's, or of a service with the same API."""

    account_sid: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{1,64}$")]
    auth_token: SecretStr
    sender: SmsSender
    base_url: Annotated[
        str, StringConstraints(max_length=2048, pattern=NO_NUL), AfterValidator(check_url)
    ] = "https://api.twilio.com"


class WebhookAccount(AccountConfig):
    """The keys with which a tenant's queued webhooks are signed, and headers to send with them."""

    secret: Annotated[SecretStr, AfterValidator(check_secret)]
    signing_key: Annotated[SecretStr, AfterValidator(_check_signing_key)] | None = None
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=MAX_HEADERS)] = Field(
        default_factory=dict
    )


CONFIGS: dict[Kind, type[AccountConfig]] = {
    "sms": SmsAccount,
    "email": SmtpAccount,
    "webhook": WebhookAccount,
}
SECRET_FIELDS: dict[Kind, frozenset[str]] = {
    "sms": frozenset({"auth_token"}),
    "email": frozenset({"password"}),
    "webhook": frozenset({"secret", "signing_key", "headers"}),
}


def read_config(
    kind: Kind, given: Mapping[str, Any], *, old: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The configuration as it is stored, secrets in clear.

    Args:
        kind: the kind of messages.
        given: the caller's configuration.
        old: the configuration before, whose secrets are kept unless `given` has others.

    Raises:
        ValueError: names fields and rules, and no value.
    """
    kept = {key: (old or {})[key] for key in SECRET_FIELDS[kind] & (old or {}).keys()}
    wanted = kept | dict(given)
    if kind == "webhook" and "secret" not in wanted:
        wanted["secret"] = make_secret()
    try:
        config = CONFIGS[kind].model_validate(wanted)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False, include_input=False, include_context=False)
        told = "; ".join(
            f"{'.'.join(str(part)[:64] for part in error['loc']) or 'config'}: {error['msg']}"
            for error in errors[:5]
        )
        raise ValueError(told) from None
    return {
        name: _reveal(getattr(config, name))
        for name in config.model_fields_set
        if getattr(config, name) is not None
    }


def split(kind: Kind, config: Mapping[str, Any]) -> tuple[dict[str, Any], bytes | None]:
    """What is stored in clear, and the JSON of the secrets; None without secrets."""
    names = SECRET_FIELDS[kind]
    clear = {name: value for name, value in config.items() if name not in names}
    hidden = {name: value for name, value in config.items() if name in names}
    return clear, orjson.dumps(hidden) if hidden else None


def show(kind: Kind, clear: Mapping[str, Any], *, has_secrets: bool) -> dict[str, Any]:
    """The configuration as callers see it."""
    hidden = dict.fromkeys(sorted(SECRET_FIELDS[kind]), HIDDEN) if has_secrets else {}
    return dict(clear) | hidden


def owner_of(name: str) -> str:
    """To what the sealed secrets of an account belong."""
    return f"provider_accounts/{name}"


def make_secret() -> str:
    """A new signing secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def _reveal(value: Any) -> Any:  # noqa: ANN401 - a field of any configuration
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _reveal(each) for key, each in value.items()}
    return value


__all__ = [
    "CONFIGS",
    "HIDDEN",
    "SECRET_FIELDS",
    "AccountConfig",
    "SmsAccount",
    "SmtpAccount",
    "WebhookAccount",
    "make_secret",
    "owner_of",
    "read_config",
    "show",
    "split",
]
