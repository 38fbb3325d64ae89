import pytest
from structlog.testing import capture_logs

from runtime.deployments.function_change import FunctionChange
from runtime.loader import LoadFailure
from runtime.reloading.reload_report import report

_WRONG = LoadFailure("shop.yaml:1", "wrong", "right")


@pytest.mark.parametrize(
    ("name", "version", "sentence"),
    [
        ("work", "b918f6ef", "Not reloaded, the last good version runs on"),
        ("work", "", "Not reloaded, it does not run"),
        ("manifests", "", "Not reloaded, the last good manifests are in use"),
        ("stream SHOP", "", "Not reloaded, it stays as it is"),
    ],
)
def test_a_failure_says_what_runs_on(name: str, version: str, sentence: str) -> None:
    with capture_logs() as lines:
        report([FunctionChange(name, "failed", version, version, 1.0, _WRONG)])

    assert [(line["event"], line["function"]) for line in lines] == [(sentence, name)]


@pytest.mark.parametrize(
    ("name", "version", "sentence"),
    [
        ("work", "b918f6ef", "Mended, the version that runs is on disk again"),
        ("manifests", "", "Mended"),
        ("stream SHOP", "", "Mended"),
    ],
)
def test_what_is_mended_is_said(name: str, version: str, sentence: str) -> None:
    with capture_logs() as lines:
        report([FunctionChange(name, "mended", version, version, 1.0)])

    assert [(line["event"], line["function"]) for line in lines] == [(sentence, name)]
