"""Reads and shows the configuration of each destination type.

`functions.route_delivery` delivers. A type without a delivery function is refused, since its jobs
would never be delivered.
"""

import base64
import secrets
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, ValidationError

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


class WebhookConfig(Request):
    """The configuration of a webhook; a secret is generated when absent."""

    url: Annotated[
        str,
        StringConstraints(max_length=2048, pattern=r"^[\x21-\x7e]+$"),
        AfterValidator(check_url),
    ]
    secret: Annotated[SecretStr, AfterValidator(check_secret)] | None = None
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=MAX_HEADERS)] = Field(
        default_factory=dict
    )


def read_destination(
    destination_type: DestinationType, config: dict[str, Any], *, secret: str | None = None
) -> dict[str, Any]:
    """The configuration as it is stored, secrets in clear.

    Args:
        destination_type: selects the model.
        config: the caller's configuration.
        secret: used when `config` has none; when it is None too, a new secret is generated.

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
    return {
        "url": webhook.url,
        "secret": webhook.secret.get_secret_value() if webhook.secret else secret or make_secret(),
        "headers": {name: value.get_secret_value() for name, value in webhook.headers.items()},
    }


def hide_secrets(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as callers see it: every value but the URL is hidden."""
    shown = {key: value if key == "url" else HIDDEN for key, value in config.items()}
    if isinstance(config.get("headers"), dict):
        shown["headers"] = dict.fromkeys(config["headers"], HIDDEN)
    return shown


def make_secret() -> str:
    """A new signing secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
