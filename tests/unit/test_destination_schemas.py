"""Validation of configurations by a type's schema, and where their secrets are."""

import time
from typing import Annotated, Any, Literal

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from functions.domain.destination_annotations import Format, Generated, StoredOnly
from functions.domain.destination_schemas import HIDDEN, DestinationSchema, check_schema
from functions.domain.destination_secrets import find_secrets, hide, seal, unseal
from functions.domain.secret_box import SecretBox, Unreadable

BOX = SecretBox(["k" * 32])


class Login(BaseModel):
    user: str
    password: SecretStr


class Destination(BaseModel):
    """A type with secrets in every kind of place."""

    host: Annotated[str, Field(max_length=20, pattern="^[a-z.]+$")]
    port: Annotated[int, Field(ge=1, le=65535)] = 25
    mode: Literal["tls", "plain"] = "tls"
    login: Login | None = None
    tokens: list[SecretStr] = []
    pair: tuple[str, SecretStr] | None = None
    headers: dict[str, SecretStr] = {}
    by_zone: dict[str, Login] = {}
    token: Annotated[SecretStr, Generated("webhook-secret", rotates_to="older")]
    older: Annotated[tuple[Login, ...], StoredOnly()] = ()


SCHEMA = DestinationSchema(Destination.model_json_schema())
LOGIN = {"user": "u", "password": "hush"}
CONFIG: dict[str, Any] = {
    "host": "mail.example",
    "login": LOGIN,
    "tokens": ["hush1", "hush2"],
    "pair": ["a", "hush3"],
    "headers": {"X/~Y": "hush4"},
    "by_zone": {"eu": LOGIN},
    "token": "hush5",
}


def test_secrets_are_found_wherever_the_schema_has_them() -> None:
    assert SCHEMA.find_secrets(CONFIG) == {
        "/login/password": "hush",
        "/tokens/0": "hush1",
        "/tokens/1": "hush2",
        "/pair/1": "hush3",
        "/headers/X~1~0Y": "hush4",
        "/by_zone/eu/password": "hush",
        "/token": "hush5",
    }


def test_what_is_shown_has_none_of_them_and_hiding_it_again_changes_nothing() -> None:
    shown = hide(SCHEMA, CONFIG)
    assert b"hush" not in orjson.dumps(shown)
    assert shown["host"] == "mail.example"
    assert shown["login"] == {"user": "u", "password": HIDDEN}
    assert hide(SCHEMA, shown) == shown


def test_both_parts_together_are_the_configuration() -> None:
    stored = seal(SCHEMA, CONFIG, BOX, "r1")
    assert "hush" not in stored.shown
    assert stored.secrets is not None
    assert b"hush" not in stored.secrets
    assert orjson.loads(unseal(stored, BOX, "r1")) == CONFIG
    with pytest.raises(Unreadable):
        unseal(stored, BOX, "r2")


def test_a_configuration_without_secrets_needs_no_key() -> None:
    stored = seal(SCHEMA, {"host": "a"}, SecretBox([]), "r1")
    assert stored.secrets is None
    assert unseal(stored, SecretBox([]), "r1") == '{"host":"a"}'


def test_what_the_schema_does_not_know_is_a_secret_and_so_is_everything_without_a_schema() -> None:
    assert SCHEMA.find_secrets({"odd": {"a": "hush"}}) == {"/odd": {"a": "hush"}}
    assert find_secrets(None, {"a": 1, "b": {"c": "hush"}}) == {"/a": 1, "/b": {"c": "hush"}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"host": None}, "host: must be of type string"),
        ({"host": "HUSH"}, "host: must match ^[a-z.]+$"),
        ({"host": "h" * 30}, "host: may have characters up to 20"),
        ({"port": 0}, "port: must be at least 1"),
        ({"port": "hush"}, "port: must be of type integer"),
        ({"mode": "hush"}, "mode: must be one of tls, plain"),
        ({"login": {"user": "u"}}, "login: password is missing"),
        ({"login": 7}, "login: has none of the forms that it may have"),
        ({"by_zone": {"eu": {"user": "u"}}}, "by_zone.eu: password is missing"),
        ({"by_zone": {"eu": {**LOGIN, "hash": "x"}}}, "by_zone.eu: there is no hash"),
        ({"colour": "hush"}, "there is no colour"),
        ({"older": [LOGIN]}, "there is no older"),
    ],
)
def test_a_problem_names_the_field_and_the_rule_but_no_value(
    change: dict[str, Any], told: str
) -> None:
    problems = SCHEMA.find_problems({**CONFIG, **change})
    assert problems == [told]
    assert "hush" not in str(problems)


def test_generated_fields_may_be_absent_and_others_may_not() -> None:
    assert SCHEMA.find_problems({"host": "a"}) == []
    assert SCHEMA.find_problems({}) == ["host is missing"]
    assert SCHEMA.find_problems({"host": "a"}, is_stored=True) == ["token is missing"]
    stored = {**CONFIG, "older": [LOGIN]}
    assert SCHEMA.find_problems(stored, is_stored=True) == []


def test_at_most_five_problems_are_told() -> None:
    assert len(SCHEMA.find_problems({"host": "a", "tokens": [1] * 100})) == 5


def test_a_format_is_checked_by_its_rule_and_one_that_is_not_known_is_not() -> None:
    class Hook(BaseModel):
        url: Annotated[str, Format("http-url")]
        other: Annotated[str, Format("no-such-format")] = ""

    schema = DestinationSchema(Hook.model_json_schema())
    assert schema.find_problems({"url": "https://example.org", "other": "x"}) == []
    [told] = schema.find_problems({"url": "ftp://user:hush@example.org"})
    assert told == "url: the URL must begin with http:// or https:// and name a host"


def test_a_model_that_takes_other_keys_gets_them_and_they_are_secrets() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        name: str

    schema = DestinationSchema(Open.model_json_schema())
    config = {"name": "a", "more": "hush"}
    assert schema.find_problems(config) == []
    assert schema.find_secrets(config) == {"/more": "hush"}


def test_a_deep_configuration_costs_little() -> None:
    class Node(BaseModel):
        inner: "Node | None" = None
        token: SecretStr | None = None

    schema = DestinationSchema({"type": "object", "$ref": "#/$defs/Node", **_defs(Node)})
    deep: dict[str, Any] = {"token": "hush"}
    for _ in range(900):
        deep = {"inner": deep}
    began_s = time.monotonic()
    assert schema.find_problems(deep) == ["the configuration is nested too deeply"]
    assert "hush" not in str(hide(schema, deep))
    assert time.monotonic() - began_s < 2.0
    shallow = {"inner": {"inner": {"token": "hush"}}}
    assert schema.find_secrets(shallow) == {"/inner/inner/token": "hush"}


def _defs(model: type[BaseModel]) -> dict[str, Any]:
    found: dict[str, Any] = model.model_json_schema()
    return {"$defs": found["$defs"]}


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ({"type": "string"}, "describes no object"),
        ({"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}, "another document"),
        ({"type": "object", "properties": {"a": {"type": "odd"}}}, "not a JSON schema"),
        ({"type": "object", "description": "x" * 70_000}, "more than 65536 bytes"),
    ],
)
def test_a_schema_that_cannot_be_used_is_not_announced(schema: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        check_schema(schema)
