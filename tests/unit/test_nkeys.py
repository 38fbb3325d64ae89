"""Keys in the form of nats-server."""

import pytest

from runtime.nkeys import AccountKey, server_key

SEED = "SAAPN4W3EG6KCJGUQTKTJ5GSB5NHK5CHAJL4DBGFUM3HHROI4XUEP4OBK4"


def test_a_seed_is_read_and_written_alike() -> None:
    key = AccountKey.from_seed(SEED)

    assert key.seed == SEED
    assert AccountKey.from_seed(key.seed).public == key.public
    assert key.public[0] == "A"
    assert len(key.public) == 56


def test_a_new_key_has_the_form_of_an_account_s() -> None:
    key = AccountKey(bytes(range(32)))

    assert key.seed.startswith("SA")
    assert len(key.seed) == 58
    assert len(key.sign(b"text")) == 64


@pytest.mark.parametrize(
    "text",
    ["", "SA", SEED[:-1], SEED[:-1] + "A", SEED.lower(), AccountKey(bytes(32)).public, "é" * 58],
)
def test_what_is_no_seed_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="an account's seed is SA and 56 more") as refused:
        AccountKey.from_seed(text)

    assert len(text) < 5 or text not in str(refused.value)


@pytest.mark.parametrize("text", ["", "N", AccountKey(bytes(32)).public, "N" * 56])
def test_what_is_no_server_s_key_is_none(text: str) -> None:
    assert server_key(text) is None
