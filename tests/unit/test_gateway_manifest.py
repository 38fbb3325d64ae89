"""The host can run the gateway's shipped manifest."""

from pathlib import Path

import pytest

from functions.http_gateway import GatewaySettings
from runtime import ConfigError, manifest
from runtime.loader import load

_MANIFEST = Path(__file__).parents[2] / "manifests" / "gateway.yaml"


def test_the_shipped_manifest_loads_and_fills_the_settings() -> None:
    environment = {"ADMIN_KEY": "a" * 16, "GATEWAY_PORT": "9090", "EMQX_BRIDGE_KEY": "0123" * 4}
    spec = manifest.read([_MANIFEST], environment).functions["http_gateway"]
    settings = load("http_gateway", spec).settings
    assert isinstance(settings, GatewaySettings)
    assert (settings.host, settings.port) == ("127.0.0.1", 9090)
    assert settings.bridge_key is not None
    assert settings.bridge_key.get_secret_value() == "0123" * 4
    assert "0123" not in repr(settings)


def test_without_emqx_no_key_is_asked_for() -> None:
    spec = manifest.read([_MANIFEST], {"ADMIN_KEY": "a" * 16}).functions["http_gateway"]
    settings = load("http_gateway", spec).settings
    assert settings.port == 8080
    assert settings.bridge_key is None


@pytest.mark.parametrize("name", ["ADMIN_KEY", "EMQX_BRIDGE_KEY"])
def test_a_key_that_can_be_guessed_is_refused_without_repeating_it(name: str) -> None:
    environment = {"ADMIN_KEY": "a" * 16, name: "hunter2"}
    with pytest.raises(ConfigError, match="at least 16 characters") as refusal:
        load("http_gateway", manifest.read([_MANIFEST], environment).functions["http_gateway"])
    assert "hunter2" not in str(refusal.value)
