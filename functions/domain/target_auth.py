"""How a delivery proves to an HTTP endpoint who sends it, for the management API and the delivery.

Secrets are `SecretStr`; no error repeats a part of one.
"""

import base64
from collections.abc import Iterable
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
)

from functions.domain.webhooks import HeaderValue, check_url

_FORM = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

# The formats are those of `functions.domain.destination_annotations`, which imports this module.
Url = Annotated[
    str,
    StringConstraints(max_length=2048, pattern=r"^[\x21-\x7e]+$"),
    AfterValidator(check_url),
    Field(json_schema_extra={"format": "http-url"}),
]
Secret = Annotated[HeaderValue, Field(json_schema_extra={"format": "http-header-value"})]
# A colon would end the name. Source: RFC 7617, section 2.
UserName = Annotated[str, StringConstraints(max_length=255, pattern=r"^[\x20-\x39\x3b-\x7e]*$")]
Text = Annotated[str, StringConstraints(max_length=1024, pattern=r"^[\x20-\x7e]*$")]


class BasicAuth(BaseModel):
    """User name and password in every request."""

    model_config = _FORM

    type: Literal["basic"]
    username: UserName
    password: Secret

    @property
    def header(self) -> str:
        """The value of `Authorization`, which is a secret."""
        pair = f"{self.username}:{self.password.get_secret_value()}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"


class OAuth2Auth(BaseModel):
    """A bearer token, which the delivery gets by OAuth 2 client credentials.

    Attributes:
        token_url: the address of the token endpoint; it may lead where webhooks may.
        scope: what the token is asked for; empty for the token endpoint's default.
        audience: for token endpoints that ask for one.
        client_authentication: where the token request has the client's secret: `basic` in its
            `Authorization` header, `body` in its form.
    """

    model_config = _FORM

    type: Literal["oauth2"]
    token_url: Url
    client_id: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    client_secret: Secret
    scope: Text = ""
    audience: Text = ""
    client_authentication: Literal["basic", "body"] = "basic"


Auth: TypeAlias = Annotated[BasicAuth | OAuth2Auth, Field(discriminator="type")]


def check_one_authorization(headers: Iterable[str], auth: object) -> None:
    """Check that no two parts of a configuration set `Authorization`.

    Raises:
        ValueError: two do.
    """
    if auth is not None and any(name.lower() == "authorization" for name in headers):
        raise ValueError("auth and the header Authorization exclude each other")


__all__ = ["Auth", "BasicAuth", "OAuth2Auth", "check_one_authorization"]
