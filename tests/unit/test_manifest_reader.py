# ruff: noqa: E501 - a mistake and the exact text it gets read best in one line

from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.errors import ConfigError
from runtime.manifest import read
from runtime.manifest.libyaml import LibyamlLoader
from runtime.manifest.model import Manifest
from tests.unit.manifests import problems_of, read_text

SHIPPED = Path(__file__).parents[2] / "manifests"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_manifest_becomes_models_with_seconds_and_bytes() -> None:
    manifest = read_text("""
streams:
  S: {subjects: [a.>], max_age: 1h30m, max_bytes: 64KB, retention: workqueue}
functions:
  f:
    handler: package.module:function
    consumer: {stream: S, ack_wait: 5s}
    retry: {schedule: [5s, 5m]}
migrations: {backbone: package.migrations}
""")

    assert manifest.streams["S"].max_age == 5400.0
    assert manifest.streams["S"].max_bytes == 64_000
    consumer = manifest.functions["f"].consumer
    assert consumer is not None
    assert (consumer.ack_wait, consumer.durable_of("f")) == (5.0, "f")
    assert manifest.functions["f"].retry.max_attempts == 3
    assert manifest.migrations == {"backbone": "package.migrations"}


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.glob("*.yaml")))
def test_every_shipped_manifest_can_be_read_alone(
    name: str,
) -> None:
    environment = {
        "NATS_URL": "nats://127.0.0.1:4222",
        "DATABASE_URL": "postgresql://127.0.0.1/runtime",
        "MQTT_ADMIN_PASSWORD": "password",
        "ADMIN_KEY": "key",
        "GATEWAY_PORT": "8080",
    }
    needed = {"telemetry.yaml", "routes.yaml", name}

    manifest = read([SHIPPED / file for file in sorted(needed)], environment)

    assert manifest.streams.keys() >= {"TELEMETRY", "ROUTES"}


def test_files_and_folders_merge_and_a_file_named_twice_is_read_once() -> None:
    Path("more").mkdir()
    Path("a.yaml").write_text("streams: {A: {subjects: [a]}}")
    Path("more/b.yml").write_text("streams: {B: {subjects: [b]}}")
    Path("more/c.txt").write_text("no manifest")

    manifest = read([Path("a.yaml"), Path("more"), Path("more/b.yml")], {})

    assert manifest.streams.keys() == {"A", "B"}


def test_a_name_in_two_files_is_an_error_that_names_both_places() -> None:
    Path("a.yaml").write_text("streams:\n  A: {subjects: [a]}\n")
    Path("b.yaml").write_text("\n\nstreams:\n  A: {subjects: [b]}\n")

    with pytest.raises(ConfigError) as caught:
        read([Path("a.yaml"), Path("b.yaml")], {})

    assert str(caught.value) == (
        "b.yaml:4: streams.A: the name is taken, first by a.yaml:2; rename one of them or remove it"
    )


def test_an_entry_knows_where_it_stands() -> None:
    manifest = read_text("""
functions:
  f:
    handler: a:b
    service: true
    settings:
      deep:
        list: [1,
          2]
""")

    where = manifest.positions.where
    assert where("functions", "f", "settings", "deep", "list", 1) == "m.yaml:9"
    assert where("functions", "f", "settings", "absent") == "m.yaml:6"
    assert where("functions", "f", "batch", "size") == "m.yaml:3"
    assert where("streams") == "manifest"


def test_where_an_entry_stands_does_not_make_two_manifests_differ() -> None:
    assert read_text("streams: {S: {subjects: [s]}}") == read_text(
        "\n\nstreams:\n  S:\n    subjects: [s]\n"
    )
    assert Manifest() == Manifest()


def test_anchors_and_merge_keys_spare_repetition() -> None:
    manifest = read_text("""
streams:
  A: &limits
    subjects: [a]
    max_age: 1h
  B:
    <<: *limits
    subjects: [b]
""")

    assert manifest.streams["B"].max_age == 3600.0
    assert manifest.streams["B"].subjects == ("b",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "m.yaml:1: the file is empty; declare something in it or remove it"),
        (b"# only this\n", "m.yaml:1: the file is empty; declare something in it or remove it"),
        (b"\n- a\n", "m.yaml:2: a list is not a mapping; begin with one of streams, functions, migrations"),
        (b"hello", "m.yaml:1: 'hello' is not a mapping; begin with one of streams, functions, migrations"),
        (b"streams: {}\n---\nstreams: {}\n", "m.yaml:3: a second document begins; keep one per file, without a --- between"),
        (b"streams:\n\tA: {}\n", "m.yaml:2: a tab stands where YAML wants spaces; indent with spaces"),
        (b"streams: [a\n", "m.yaml:2: not YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence); correct it near column 1"),
        (b"streams: {A: ${B}}\n", "m.yaml:1: not YAML: expected ',' or '}', but got '{' (while parsing a flow mapping); put ${…} in quotes where it stands inside [ ] or { }"),
        (b"streams: {}\n# \xff\n", "m.yaml:2: not UTF-8 text; save the file as UTF-8"),
        (b"streams: {}\n# \x00\n", "m.yaml:2: a control character; remove it"),
        (b"streams: *nowhere\n", "m.yaml:1: not YAML: found undefined alias 'nowhere'; correct it near column 10"),
        (b"streams: !stream {}\n", "m.yaml:1: streams: unknown tag '!stream'; remove the tag"),
        (b"streams: !!int many\n", "m.yaml:1: streams: 'many' cannot be read as int; remove the tag"),
        (b"streams: &s {A: *s}\n", "m.yaml:1: streams.A: an alias contains itself; write the value out"),
        (b"streams: {}\nstreams: {}\n", "m.yaml:2: streams: the key stands twice, first in line 1; keep one of them"),
        (b"? [a]\n: b\n", "m.yaml:1: a list or mapping is used as a key; write a plain name"),
        (b"<<: 5\n", "m.yaml:1: << merges something that is not a mapping; name a mapping"),
        (b"[" * 5000, "m.yaml:1: nested too deeply; flatten it"),
        (b"[" * 50_000 + b"]" * 50_000, "m.yaml:1: nested too deeply; flatten it"),
        (b"stream: {}\n", "m.yaml:1: stream: no such key; did you mean streams?"),
        (b"zzz: {}\n", "m.yaml:1: zzz: no such key; known are defaults, functions, migrations, streams"),
        (b"streams:\n", "m.yaml:1: streams: nothing is not a mapping; write `key: value` lines below it"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_manifest_is_told_so_with_its_line(content: bytes, expected: str) -> None:
    Path("m.yaml").write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        read([Path("m.yaml")], {})

    assert [str(problem) for problem in caught.value.problems] == [expected]


_ALL_OF_YAML = r"""%YAML 1.1
---
streams: &all   # with a comment
  "quoted": 'single ''quotes'''
  plain: 08:30
  empty:
  ~: null
  numbers: [1, 0x1F, 1_000, 1e3, 1.5, .inf, yes, 2026-01-01]
  folded: >-
    one
    line
  literal: |2
      two
     lines
  {nested: {flow: [a, {b: c}]}}: !!str 5
  ? long key
  : - - item
    -
      - of lists
functions:
  <<: *all
  again: *all
  "escaped \u00e9\n": "é and 😀"
"""


def _nodes(text: str, loader: type[Any]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    waiting: list[Any] = list(yaml.compose_all(text, Loader=loader))
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting += node
        elif isinstance(node, yaml.ScalarNode):
            found.append((node.tag, node.value, node.start_mark.line, bool(node.style)))
        else:
            found.append((node.tag, len(node.value), node.start_mark.line))
            waiting += node.value
    return found


@pytest.mark.parametrize(
    "text",
    [_ALL_OF_YAML, *(path.read_text() for path in sorted(SHIPPED.glob("*.yaml")))],
    ids=["all of YAML", *sorted(path.stem for path in SHIPPED.glob("*.yaml"))],
)
def test_libyaml_reads_the_same_as_pyyaml_itself(text: str) -> None:
    assert _nodes(text, LibyamlLoader) == _nodes(text, yaml.SafeLoader)


def test_a_missing_file_and_an_empty_folder_are_both_reported() -> None:
    Path("empty").mkdir()
    Path("broken.yaml").symlink_to("broken.yaml")
    Path("folder").mkdir()
    Path("folder/a.yaml").mkdir()

    with pytest.raises(ConfigError) as caught:
        read([Path("absent.yaml"), Path("empty"), Path("folder")], {})

    assert [str(problem) for problem in caught.value.problems] == [
        "absent.yaml: no such file or folder; name a manifest or a folder",
        "empty: no *.yaml or *.yml file in it; name another folder",
        "folder/a.yaml: cannot be read: Is a directory; make it a readable file",
    ]


def test_one_bad_entry_does_not_hide_the_mistakes_of_another() -> None:
    problems = problems_of("""
streams:
  S: {subjects: [s], replicas: many}
functions:
  one: {handler: a:b, consumer: {stream: S}, endpoint: {subject: x}, concurrency: 0}
  two: {handler: a:b}
  three: 5
""")

    assert problems == [
        "m.yaml:3: streams.S.replicas: 'many' is not a whole number; write a whole number",
        "m.yaml:5: functions.one.concurrency: 0 is too small; use at least 1",
        "m.yaml:5: functions.one: consumer and endpoint found; write exactly one of consumer, endpoint,"
        " schedule, service; several stand under `triggers:`",
        "m.yaml:6: functions.two: no binding found; write exactly one of consumer, endpoint, schedule,"
        " service",
        "m.yaml:7: functions.three: 5 is not a mapping; write `key: value` lines below it",
    ]
