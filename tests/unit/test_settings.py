from pathlib import Path

import pytest

from runtime.errors import ConfigError
from runtime.settings import HostSettings

SECRET = "hunter2"


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = HostSettings.from_environment({})

    assert (settings.nats_port, settings.monitor_port, settings.mqtt_port) == (4222, 8222, 1883)
    assert (settings.gateway_port, settings.admin_port) == (8080, 8081)
    assert settings.data_dir == Path(".runtime")
    assert settings.nats_url is None
    assert settings.database_url is None


def test_every_setting_is_read_from_its_variable() -> None:
    settings = HostSettings.from_environment(
        {
            "NATS_URL": "nats://a:4222",
            "DATABASE_URL": "postgresql://a/b",
            "GATEWAY_PORT": "1",
            "RUNTIME_NATS_PORT": "2",
            "RUNTIME_MONITOR_PORT": "3",
            "RUNTIME_MQTT_PORT": "4",
            "RUNTIME_ADMIN_PORT": "0",
            "RUNTIME_DATA_DIR": "/data",
            "RUNTIME_LOG_LEVEL": "DEBUG",
            "RUNTIME_LOG_FORMAT": "json",
            "RUNTIME_GRACE_S": "1.5",
        }
    )

    assert settings.nats_url is not None
    assert settings.nats_url.get_secret_value() == "nats://a:4222"
    assert (settings.gateway_port, settings.nats_port, settings.monitor_port) == (1, 2, 3)
    assert (settings.mqtt_port, settings.admin_port) == (4, 0)
    assert settings.data_dir == Path("/data")
    assert (settings.log_level, settings.log_format, settings.grace_s) == ("DEBUG", "json", 1.5)


def test_an_empty_variable_counts_as_not_set() -> None:
    settings = HostSettings.from_environment({"NATS_URL": "", "RUNTIME_ADMIN_PORT": ""})

    assert settings.nats_url is None
    assert settings.admin_port == 8081


def test_an_unknown_runtime_variable_is_a_mistake_and_others_are_not_ours() -> None:
    HostSettings.from_environment({"PATH": "/bin", "NATS_PORT": "1"})

    with pytest.raises(ConfigError, match=r"^RUNTIME_NATS_PROT: no such setting; known are "):
        HostSettings.from_environment({"RUNTIME_NATS_PROT": SECRET})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUNTIME_NATS_PORT", "70000"),
        ("RUNTIME_NATS_PORT", "hunter2"),
        ("RUNTIME_LOG_LEVEL", "hunter2"),
        ("RUNTIME_LOG_FORMAT", "hunter2"),
        ("RUNTIME_GRACE_S", "0"),
        ("RUNTIME_GRACE_S", "hunter2"),
        ("RUNTIME_MQTT_SHARED_USER", "hunter2"),
        ("NATS_SYSTEM_URL", "http://hunter2@host:4222"),
        ("NATS_AUTH_ISSUER", "hunter2"),
        ("NATS_AUTH_ISSUER", "SUhunter2"),
        ("NATS_URL", "http://hunter2@host:4222"),
        ("NATS_URL", "ws://hunter2@host:8080"),
        ("NATS_URL", "nats://host:4222, postgresql://hunter2@host"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_and_not_shown(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HostSettings.from_environment({name: value})

    [problem] = caught.value.problems
    assert problem.where == name
    assert SECRET not in str(problem)


def test_all_mistakes_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        HostSettings.from_environment(
            {"RUNTIME_ADMIN_PORT": "x", "RUNTIME_GRACE_S": "-1", "RUNTIME_NO": "1"}
        )

    where = {problem.where for problem in caught.value.problems}
    assert where == {"RUNTIME_ADMIN_PORT", "RUNTIME_GRACE_S", "RUNTIME_NO"}


def test_secrets_do_not_show_in_a_settings_text() -> None:
    names = ("NATS_URL", "DATABASE_URL", "MQTT_ADMIN_PASSWORD", "ADMIN_KEY")
    settings = HostSettings.from_environment(dict.fromkeys(names, f"nats://u:{SECRET}@h"))

    assert SECRET not in repr(settings)
    assert SECRET not in str(settings.model_dump())
