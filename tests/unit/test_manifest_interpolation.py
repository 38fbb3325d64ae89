# ruff: noqa: E501 - a mistake and the exact text it gets read best in one line

from pathlib import Path

import pytest
from pydantic import SecretStr

from runtime.errors import ConfigError
from runtime.manifest import read
from tests.unit.manifests import problems_of, read_text


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings_of(text: str, environment: dict[str, str] | None = None) -> dict[str, object]:
    manifest = read_text(
        f"functions:\n  f:\n    handler: a:b\n    service: true\n    settings:\n{text}",
        environment or {},
    )
    return manifest.functions["f"].settings


@pytest.mark.parametrize(
    ("written", "environment", "expected"),
    [
        ("${PORT:-8080}", {}, 8080),
        ("${PORT:-8080}", {"PORT": ""}, 8080),
        ("${PORT:-8080}", {"PORT": "9"}, 9),
        ("'${PORT:-8080}'", {}, "8080"),
        ('"${PORT}"', {"PORT": "9"}, "9"),
        ("${ON}", {"ON": "true"}, True),
        ("${X:-}", {}, None),
        ("'${X:-}'", {}, ""),
        ("http://${HOST}:${PORT}/", {"HOST": "h", "PORT": "1"}, "http://h:1/"),
        ("$${NOT_A_VARIABLE}", {}, "${NOT_A_VARIABLE}"),
        ("costs $5", {}, "costs $5"),
        ("${A}", {"A": "${B}", "B": "b"}, "${B}"),
        ("2025-01-01", {}, "2025-01-01"),
        ("0x10", {}, 16),
    ],
)
def test_a_value_is_typed_after_its_references_are_filled_in(
    written: str, environment: dict[str, str], expected: object
) -> None:
    value = settings_of(f"      x: {written}\n", environment)["x"]

    assert value == expected
    assert type(value) is type(expected)


def test_an_unset_variable_is_named_and_hides_no_other_mistake() -> None:
    assert problems_of(
        "streams:\n  S:\n    subjects: ['${A}']\n    replicas: ${B}\n    x: 1\n"
    ) == [
        "m.yaml:3: streams.S.subjects[0]: the variable A is not set; set it, or give a default:"
        " ${A:-…}",
        "m.yaml:4: streams.S.replicas: the variable B is not set; set it, or give a default: ${B:-…}",
        "m.yaml:5: streams.S.x: no such key; known are consumers, description, discard,"
        " duplicate_window, max_age, max_bytes, max_msg_size, max_msgs, max_msgs_per_subject,"
        " replicas, retention, storage, subjects",
    ]


@pytest.mark.parametrize("reference", ["${}", "${A-b}", "${1A}", "${A"])
def test_a_malformed_reference_is_refused(reference: str) -> None:
    assert problems_of(f"streams:\n  S:\n    subjects: ['{reference}']\n") == [
        f"m.yaml:3: streams.S.subjects[0]: {reference!r} is not a reference; write ${{NAME}} or"
        " ${NAME:-default}, or $${ for the two characters themselves"
    ]


def test_a_secret_comes_from_the_environment_or_a_file_and_is_not_shown() -> None:
    Path("key").write_text("from the file\n")

    settings = settings_of(
        "      token: {from_env: TOKEN}\n      deep:\n        - {from_file: key}\n",
        {"TOKEN": "from the environment"},
    )

    token, deep = settings["token"], settings["deep"]
    assert isinstance(token, SecretStr)
    assert token.get_secret_value() == "from the environment"
    assert isinstance(deep, list)
    assert deep[0].get_secret_value() == "from the file"
    assert "from the" not in repr(settings)


def test_a_secret_file_is_looked_for_beside_the_manifest() -> None:
    Path("folder").mkdir()
    Path("folder/key").write_text("k")
    Path("folder/m.yaml").write_text(
        "functions: {f: {handler: a:b, service: true, settings: {x: {from_file: key}}}}"
    )
    manifest = read([Path("folder/m.yaml")], {})

    assert manifest.functions["f"].settings["x"].get_secret_value() == "k"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("{from_env: ABSENT}", "the variable ABSENT is not set; set it to the secret"),
        ("{from_env: EMPTY}", "the variable EMPTY is empty; set it to the secret"),
        ("{from_file: absent}", "absent cannot be read: No such file or directory; name a file that holds the secret"),
        ("{from_file: empty}", "empty is empty; write the secret into it"),
        ("{from_file: binary}", "binary is not UTF-8 text; store the secret as text"),
        ("{from_env: 5}", "from_env names nothing; write {from_env: NAME}"),
        ("{from_env: A, default: b}", "a reference to a secret has more than one key; write {from_env: NAME} or {from_file: PATH}, and perhaps optional: true"),
    ],
)  # fmt: skip
def test_a_secret_that_is_not_there_is_reported_without_its_value(
    reference: str, expected: str
) -> None:
    Path("empty").write_text("\n")
    Path("binary").write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError) as caught:
        settings_of(f"      x: {reference}\n", {"EMPTY": ""})

    assert str(caught.value) == f"m.yaml:6: functions.f.settings.x: {expected}"


@pytest.mark.parametrize(
    "reference",
    [
        "{from_env: ABSENT, optional: true}",
        "{optional: true, from_env: EMPTY}",
        "{from_file: absent, optional: true}",
        "{from_file: empty, optional: true}",
    ],
)
def test_an_optional_secret_that_is_not_set_leaves_its_setting_out(reference: str) -> None:
    Path("empty").write_text("\n")

    settings = settings_of(f"      x: {reference}\n      y: [{reference}, 1]\n", {"EMPTY": ""})

    assert settings == {"y": [1]}


def test_an_optional_secret_that_is_set_is_a_secret() -> None:
    settings = settings_of("      x: {from_env: A, optional: true}\n", {"A": "secret"})

    assert settings == {"x": SecretStr("secret")}


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("{from_env: ABSENT, optional: false}", "the variable ABSENT is not set; set it to the secret"),
        ("{from_env: A, optional: perhaps}", "optional is not true or false; write true or false"),
        ("{from_file: binary, optional: true}", "binary is not UTF-8 text; store the secret as text"),
    ],
)  # fmt: skip
def test_optional_hides_no_other_mistake(reference: str, expected: str) -> None:
    Path("binary").write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError) as caught:
        settings_of(f"      x: {reference}\n")

    assert str(caught.value) == f"m.yaml:6: functions.f.settings.x: {expected}"
