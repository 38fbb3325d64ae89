"""Encryption of secrets at rest, and rotation of its keys."""

import pytest
from pydantic import SecretStr, ValidationError

from functions.domain.secret_box import SecretBox, SecretsSettings, Unreadable, read_keys

OLD, NEW = "o" * 32, "n" * 43


def test_what_is_sealed_is_opened_again_and_shows_nothing() -> None:
    box = SecretBox([OLD])
    sealed = box.seal(b"hush hush", "route/1")
    assert b"hush" not in sealed
    assert box.open(sealed, "route/1") == b"hush hush"
    assert box.seal(b"hush hush", "route/1") != sealed


def test_a_new_key_encrypts_and_the_old_one_still_decrypts() -> None:
    sealed = SecretBox([OLD]).seal(b"hush", "route/1")
    both = SecretBox([NEW, OLD])
    assert both.open(sealed, "route/1") == b"hush"
    assert not sealed.startswith(both.current)
    renewed = both.seal(b"hush", "route/1")
    assert renewed.startswith(both.current)
    assert SecretBox([NEW]).open(renewed, "route/1") == b"hush"
    assert any(sealed.startswith(each) for each in both.known)


@pytest.mark.parametrize("keys", [[], [NEW]])
def test_a_key_that_is_missing_or_wrong_opens_nothing(keys: list[str]) -> None:
    sealed = SecretBox([OLD]).seal(b"hush", "route/1")
    with pytest.raises(Unreadable, match="not known here"):
        SecretBox(keys).open(sealed, "route/1")


def test_what_was_changed_cut_or_copied_to_another_row_is_not_opened() -> None:
    box = SecretBox([OLD])
    sealed = box.seal(b"hush", "route/1")
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    other_form = b"\x02" + sealed[1:]
    for broken in (changed, other_form, sealed[:20], sealed[:3], b""):
        with pytest.raises(Unreadable):
            box.open(broken, "route/1")
    with pytest.raises(Unreadable, match="another row"):
        box.open(sealed, "route/2")


def test_without_a_key_nothing_is_sealed() -> None:
    assert not SecretBox([]).can_seal
    with pytest.raises(Unreadable, match="no key"):
        SecretBox([]).seal(b"hush", "route/1")


def test_keys_are_separated_by_commas_or_blanks_and_a_short_one_is_not_quoted() -> None:
    assert read_keys(f"{NEW},{OLD} , {NEW}\n") == [NEW, OLD, NEW]
    assert SecretBox.of(SecretStr(f"{NEW} {OLD}")).current == SecretBox([NEW]).current
    with pytest.raises(ValidationError) as refused:
        SecretsSettings(secrets_keys=SecretStr(f"{OLD},hunter2"))
    assert "at least 32 characters" in str(refused.value)
    assert "hunter2" not in str(refused.value)
