import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import ConfigError
from tests.unit.manifests import read_text

SHIPPED = Path(__file__).parents[2] / "manifests"
SERVICE = """
  gateway:
    handler: a:b
    service: true
    settings: {key: {from_env: K, optional: true}, n: 1}
  both:
    handler: a:b
    concurrency: 2
    triggers:
      one: {consumer: {stream: TELEMETRY}}
      two: {endpoint: {subject: two, http: {method: GET, path: /two}}}
defaults:
  timeout: 5s
  retry: {attempts: 3}
  settings: {token: {from_env: K}}
  endpoint: {service: x, http: {auth: none}}
"""
TEXT = (SHIPPED / "telemetry.yaml").read_text(encoding="utf-8") + SERVICE
LINES = TEXT.splitlines(keepends=True)
SCRAPS = st.sampled_from(
    [
        *(
            "${",
            "$${",
            "${A}",
            "<<: ",
            "*a",
            "&a ",
            "[",
            "]",
            "{",
            "}",
            ": ",
            "- ",
            "!!set ",
            "null",
        ),
        *(
            "0",
            "-1",
            "1e999",
            ".nan",
            "yes",
            "'",
            '"',
            "\t",
            "\n",
            "---\n",
            "? ",
            "|\n",
            "\x85",
            "é",
        ),
        *("from_env: ", "consumer: ", "9" * 24, "2025-01-01", "0x", "1:30", "#", "~"),
    ]
)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, len(TEXT)), SCRAPS), min_size=1, max_size=4),
    st.sets(st.integers(0, len(LINES) - 1), max_size=4),
)
def test_a_mangled_manifest_is_read_or_refused_with_places(
    scraps: list[tuple[int, str]], dropped: set[int]
) -> None:
    text = "".join(line for number, line in enumerate(LINES) if number not in dropped)
    for at, scrap in scraps:
        text = text[:at] + scrap + text[at:]

    problems = []
    try:
        read_text(text, {"K": "hidden-value"})
    except ConfigError as error:
        problems = list(error.problems)

    assert [p for p in problems if not re.fullmatch(r"m\.yaml:\d+", p.where)] == []
    assert "hidden-value" not in "".join(map(str, problems))
