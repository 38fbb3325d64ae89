from collections.abc import Iterator

import pytest
from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from runtime.observe import redaction
from runtime.observe.redaction import hide, mask, passwords_in, scrub, secrets_in


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(redaction, "_known", ())
    return iter(())


class Inner(BaseModel):
    pin: SecretStr


class Settings(BaseModel):
    name: str = "not a secret"
    key: SecretStr = SecretStr("first-secret")
    raw: SecretBytes = SecretBytes(b"second-secret")
    many: dict[str, list[SecretStr]] = {"a": [SecretStr("third-secret")]}
    inner: Inner = Inner(pin=SecretStr("fourth-secret"))


def test_all_secrets_of_settings_are_found_however_deep_they_are() -> None:
    found = set(secrets_in(Settings()))

    assert found == {"first-secret", "second-secret", "third-secret", "fourth-secret"}


def test_a_known_secret_is_blotted_out_wherever_it_stands() -> None:
    hide(["hunter2", "hunter2-and-more"])

    assert mask("it said hunter2-and-more, then hunter2!") == "it said ***, then ***!"
    assert scrub("xhunter2x") == "x***x"


def test_a_secret_that_is_as_short_as_a_word_is_not_looked_for() -> None:
    hide(["abc", ""])

    assert mask("abc") == "abc"


@pytest.mark.parametrize(
    ("address", "passwords"),
    [
        ("postgresql://me:hunter2@there/db", {"hunter2"}),
        ("postgresql://me:hun%40ter2@there/db", {"hun%40ter2", "hun@ter2"}),
        ("nats://a:first-one@x:4222,nats://b:second@y:4222", {"first-one", "second"}),
        ("postgresql://runtime:runtime@there/db", set()),
        ("postgresql://there/db", set()),
        ("nats://[broken", set()),
        (None, set()),
    ],
)
def test_the_passwords_of_an_address_are_found(address: str | None, passwords: set[str]) -> None:
    assert set(passwords_in(address)) == passwords


def test_the_value_that_pydantic_quotes_is_blotted_out() -> None:
    with pytest.raises(ValidationError) as refused:
        Inner.model_validate({"pin": {"a": "my own pin"}})

    told = mask(str(refused.value))

    assert "my own pin" not in told
    assert "input_value=***, input_type=dict" in told
