"""Reads and shows the configuration of each destination type.

`functions.route_delivery` delivers. A type without a delivery function is refused, since its jobs
would never be delivered.
"""

import base64
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, ValidationError

from functions.domain.signing_keys import make_signing_key, public_key_of
from functions.domain.webhooks import (
    MAX_HEADERS,
    SECRET_PREFIX,
    HeaderName,
    HeaderValue,
    check_secret,
    check_url,
)
from functions.management.requests import Request
from runtime import Reject

DestinationType = Literal["webhook"]
HIDDEN = "***"

_SECRET_BYTES = 32
_MAX_PREVIOUS_SECRETS = 10


class WebhookConfig(Request):
    """The configuration of a webhook; a secret is generated when absent.

    `ed25519: true` generates a signing key as well, whose public key every answer shows.
    """

    url: Annotated[
        str,
        StringConstraints(max_length=2048, pattern=r"^[\x21-\x7e]+$"),
        AfterValidator(check_url),
    ]
    secret: Annotated[SecretStr, AfterValidator(check_secret)] | None = None
    ed25519: bool = False
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=MAX_HEADERS)] = Field(
        default_factory=dict
    )


def read_destination(
    destination_type: DestinationType,
    config: dict[str, Any],
    *,
    old: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The configuration as it is stored, secrets in clear.

    Args:
        destination_type: selects the model.
        config: the caller's configuration.
        old: the configuration before, whose keys are kept unless `config` has others.

    Raises:
        Reject: `DESTINATION_INVALID`; the text names fields and rules but no value.
    """
    try:
        webhook = WebhookConfig.model_validate(config)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False, include_input=False, include_context=False)
        told = "; ".join(
            f"{'.'.join(str(part)[:64] for part in error['loc'])}: {error['msg']}"
            for error in errors[:5]
        )
        raise Reject(
            "DESTINATION_INVALID", f"destination_config of a {destination_type}: {told}", status=422
        ) from None
    given = webhook.secret.get_secret_value() if webhook.secret else None
    stored: dict[str, Any] = {
        "url": webhook.url,
        "secret": given or old.get("secret") or make_secret(),
        "headers": {name: value.get_secret_value() for name, value in webhook.headers.items()},
    }
    if given is None and "previous_secrets" in old:
        stored["previous_secrets"] = old["previous_secrets"]
    if webhook.ed25519 or "signing_key" in old:
        stored["signing_key"] = old.get("signing_key") or make_signing_key()
    return stored


def rotate_secret(config: dict[str, Any], *, now: datetime, overlap: timedelta) -> dict[str, Any]:
    """The configuration with a new secret; the old one signs too until `overlap` has passed.

    Without an overlap no older secret signs any more.

    Raises:
        Reject: `TOO_MANY_SECRETS`; that many secrets still sign.
    """
    previous = [
        one
        for one in config.get("previous_secrets", [])
        if overlap and datetime.fromisoformat(one["until"]) > now
    ]
    if overlap:
        previous.insert(0, {"secret": config["secret"], "until": (now + overlap).isoformat()})
    if len(previous) > _MAX_PREVIOUS_SECRETS:
        raise Reject(
            "TOO_MANY_SECRETS",
            f"{_MAX_PREVIOUS_SECRETS} older secrets of this route still sign; wait, or rotate with"
            " an overlap of 0.",
            status=409,
        )
    return config | {"secret": make_secret(), "previous_secrets": previous}


def hide_secrets(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as callers see it: every value but the URL and public keys is hidden."""
    shown = {key: value if key == "url" else HIDDEN for key, value in config.items()}
    if isinstance(config.get("previous_secrets"), list):
        shown["previous_secrets"] = [
            {"secret": HIDDEN, "until": one["until"]} for one in config["previous_secrets"]
        ]
    if isinstance(config.get("signing_key"), str):
        shown["public_key"] = public_key_of(config["signing_key"])
    if isinstance(config.get("headers"), dict):
        shown["headers"] = dict.fromkeys(config["headers"], HIDDEN)
    return shown


def make_secret() -> str:
    """A new signing secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
