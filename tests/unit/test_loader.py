# ruff: noqa: E501 - a mistake and the exact text it gets read best in one line
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from pydantic import SecretStr

from runtime.errors import ConfigError, PayloadError
from runtime.loader import Function, load, load_all
from runtime.manifest import read_what_is_right
from runtime.manifest.model import FunctionSpec
from tests.unit.manifests import read_text

CONSUMER = "consumer: {stream: S}"
ENDPOINT = "endpoint: {subject: e}"
SCHEDULE = "schedule: {every: 1m}"
SERVICE = "service: true"
IMPORTS = """
from runtime import Batch, Context, Event
from pydantic import BaseModel, SecretStr, field_validator
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]
    importlib.invalidate_caches()


def write(source: str, file: str = "sample.py") -> None:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(IMPORTS + dedent(source))
    importlib.invalidate_caches()


def load_text(binding: str, rest: str = "", handler: str = "sample:handle") -> Function:
    manifest = read_text(
        f"streams: {{S: {{subjects: [s]}}}}\nfunctions:\n  f:\n    handler: {handler}\n    {binding}\n{rest}"
    )
    return load_all(manifest)["f"]


def problems_of(binding: str, rest: str = "", handler: str = "sample:handle") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(binding, rest, handler)
    return [str(problem) for problem in caught.value.problems]


def test_a_handler_of_one_event_is_decoded_by_its_annotation() -> None:
    write("""
        class Reading(BaseModel):
            temp: float

        async def handle(event: Event[Reading], ctx: Context) -> None: ...
    """)

    function = load_text(CONSUMER)

    assert (function.name, function.shape, function.is_async) == ("f", "event", True)
    assert function.handler is sys.modules["sample"].handle
    assert function.decode is not None
    assert function.decode(b'{"temp": 21.5}') == sys.modules["sample"].Reading(temp=21.5)
    assert function.request_schema is not None
    assert function.request_schema["required"] == ["temp"]
    assert function.settings is None
    assert (function.start, function.stop) == (None, None)


def test_annotations_may_be_postponed_and_the_context_may_name_its_state() -> None:
    Path("sample.py").write_text(
        "from __future__ import annotations\n"
        + IMPORTS
        + "class State: ...\n"
        + "async def handle(batch: Batch[dict[str, int]], ctx: Context[State]) -> None: ...\n"
    )

    function = load_text(CONSUMER)

    assert function.shape == "batch"
    assert function.decode is not None
    assert function.decode(b'{"a": 1}') == {"a": 1}


def test_bytes_are_handed_over_raw() -> None:
    write("def handle(batch: Batch[bytes], ctx: Context) -> None: ...")

    function = load_text(CONSUMER)

    assert (function.decode, function.request_schema, function.is_async) == (None, None, False)


@pytest.mark.parametrize(
    ("annotation", "payload", "expected"),
    [
        ("list[int]", b"[1, 2]", [1, 2]),
        ("str", b'"text"', "text"),
        ("int | None", b"null", None),
        ("Pair", b'{"a": 1, "b": "x"}', {"a": 1, "b": "x"}),
    ],
)
def test_any_type_that_json_can_hold_may_be_asked_for(
    annotation: str, payload: bytes, expected: object
) -> None:
    write(f"""
        from typing_extensions import TypedDict

        class Pair(TypedDict):
            a: int
            b: str

        async def handle(event: Event[{annotation}], ctx: Context) -> None: ...
    """)

    decode = load_text(CONSUMER).decode

    assert decode is not None
    assert decode(payload) == expected


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"temp": "warm"}', "temp: Input should be a valid number, unable to parse string as a number"),
        (b"{}", "temp: Field required"),
        (b"", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b"\xff", "Invalid JSON: expected value at line 1 column 1"),
        (b"[" * 100_000, "Invalid JSON: recursion limit exceeded at line 1 column"),
    ],
)  # fmt: skip
def test_a_payload_that_does_not_fit_is_refused_without_showing_it(
    payload: bytes, reason: str
) -> None:
    write("""
        class Reading(BaseModel):
            temp: float

        async def handle(event: Event[Reading], ctx: Context) -> None: ...
    """)
    decode = load_text(CONSUMER).decode
    assert decode is not None

    with pytest.raises(PayloadError) as caught:
        decode(payload)

    assert caught.value.reason.startswith(reason)
    assert len(caught.value.reason) < len(reason) + 10


def test_the_reason_stays_short_whatever_the_payload() -> None:
    write("async def handle(event: Event[dict[str, int]], ctx: Context) -> None: ...")
    decode = load_text(CONSUMER).decode
    assert decode is not None

    with pytest.raises(PayloadError) as caught:
        decode(b"{" + b",".join(b'"%s%d": "x"' % (b"k" * 500, n) for n in range(50)) + b"}")

    assert len(caught.value.reason) <= 500


def test_an_endpoint_takes_no_payload_for_an_empty_object() -> None:
    write("""
        class Query(BaseModel):
            limit: int = 10

        async def handle(event: Event[Query], ctx: Context) -> list[str]: ...
    """)

    function = load_text(ENDPOINT)

    assert function.decode is not None
    assert function.decode(b"").limit == 10
    assert function.response_schema == {"items": {"type": "string"}, "type": "array"}


def test_a_result_becomes_the_bytes_of_a_reply() -> None:
    write("""
        class Shadow(BaseModel):
            version: int
            token: SecretStr

        async def handle(event: Event[bytes], ctx: Context) -> Shadow: ...
    """)
    encode = load_text(ENDPOINT).encode

    shadow = sys.modules["sample"].Shadow(version=3, token="secret")
    assert encode(shadow) == b'{"version":3,"token":"**********"}'
    assert encode({"a": float("nan")}) == b'{"a":null}'
    assert encode([1, "ä"]) == '[1,"ä"]'.encode()
    assert encode("text") == b'"text"'
    assert encode(b"raw") == b"raw"
    assert encode(None) == b""


def test_services_and_schedules_get_the_context_alone() -> None:
    write("""
        async def handle(ctx: Context) -> None: ...
        def tick(ctx: Context) -> None: ...
        async def start(ctx: Context) -> int: ...
        def stop(ctx: Context) -> None: ...
    """)

    service = load_text(SERVICE)
    schedule = load_text(SCHEDULE, handler="sample:tick")

    assert (service.shape, service.is_async) == ("service", True)
    assert (schedule.shape, schedule.is_async) == ("schedule", False)
    assert service.start is sys.modules["sample"].start
    assert service.stop is sys.modules["sample"].stop


def test_a_callable_object_is_a_handler_too() -> None:
    write("""
        class Handler:
            async def __call__(self, event: Event[bytes], ctx: Context) -> None: ...

        handle = Handler()
    """)

    assert load_text(CONSUMER).is_async


def test_modules_keep_their_own_names() -> None:
    write("async def handle(ctx: Context) -> None: ...", "one/main.py")
    write("async def handle(ctx: Context) -> int: ...", "two/main.py")

    one = load_text(SERVICE, handler="one.main:handle")
    two = load_text(SERVICE, handler="two.main:handle")

    assert one.handler is not two.handler
    assert (one.handler.__module__, two.handler.__module__) == ("one.main", "two.main")


def test_the_code_version_changes_with_any_file_of_a_package() -> None:
    write("from package.inner import handle", "package/__init__.py")
    write("async def handle(ctx: Context) -> None: ...", "package/inner.py")
    first = load_text(SERVICE, handler="package:handle").code_version

    write("async def handle(ctx: Context) -> None: pass", "package/inner.py")
    second = load_text(SERVICE, handler="package:handle").code_version

    assert len(first) == 12
    assert first != second


def version_of(handler: str) -> str:
    return load_text(SERVICE, handler=handler).code_version


@pytest.mark.parametrize(
    ("file", "imported"),
    [
        ("helper.py", "import helper"),
        ("helper.py", "from helper import *"),
        ("package/helper.py", "from package import helper"),
        ("package/helper.py", "import package.helper as other"),
        ("package/deeper/helper.py", "from package.deeper.helper import ANY"),
        ("package/__init__.py", "from package import other"),
        ("package/queries.sql", "from package import other"),
        ("helper.py", "def later():\n    import helper"),
        ("helper.py", "import between"),
        ("package/helper.py", "import package.relative"),
    ],
)
def test_the_code_version_changes_with_whatever_of_the_project_the_handler_imports(
    file: str, imported: str
) -> None:
    write("import helper", "between.py")
    write("from . import helper", "package/relative.py")
    for name in ("package/__init__.py", "package/other.py", "package/deeper/__init__.py"):
        write("", name)
    for name in ("helper.py", "package/helper.py", "package/deeper/helper.py"):
        write("ANY = 1", name)
    write(f"{imported}\nasync def handle(ctx: Context) -> None: ...")
    first = version_of("sample:handle")

    write("ANY = 2", file)
    second = version_of("sample:handle")

    assert first != second


def test_the_code_version_does_not_change_with_what_the_handler_does_not_import() -> None:
    write("ANY = 1", "helper.py")
    write("async def handle(ctx: Context) -> None: ...")
    first = version_of("sample:handle")

    write("ANY = 2", "helper.py")

    assert version_of("sample:handle") == first


def test_the_code_version_does_not_change_with_what_is_installed_wherever_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere" / "site-packages"
    write("ANY = 1", str(other / "library" / "__init__.py"))
    monkeypatch.syspath_prepend(str(other))
    write("import library\nasync def handle(ctx: Context) -> None: ...")
    first = version_of("sample:handle")

    write("ANY = 2", str(other / "library" / "__init__.py"))

    assert version_of("sample:handle") == first


def test_the_code_version_is_that_of_the_content_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = set()
    for folder in ("one", "two"):
        place = tmp_path / folder
        place.mkdir()
        monkeypatch.chdir(place)
        monkeypatch.syspath_prepend(str(place))
        write("ANY = 1", "shop/helper.py")
        write("import shop.helper\nasync def handle(ctx: Context) -> None: ...", "shop/work.py")
        versions.add(version_of("shop.work:handle"))
        for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
            del sys.modules[name]

    assert len(versions) == 1


def test_the_code_version_counts_modules_in_folders_without_an_init() -> None:
    write("async def handle(ctx: Context) -> None: ...", "package/__init__.py")
    write("x = 1", "package/inner/deep/module.py")
    first = load_text(SERVICE, handler="package:handle").code_version

    write("x = 2", "package/inner/deep/module.py")
    del sys.modules["package"]

    assert load_text(SERVICE, handler="package:handle").code_version != first


def test_modules_that_import_each_other_have_a_code_version_too() -> None:
    write("import right", "left.py")
    write("import left\nasync def handle(ctx: Context) -> None: ...", "right.py")

    assert len(version_of("right:handle")) == 12


def test_the_schema_of_a_reply_has_what_is_computed_when_it_is_written() -> None:
    write("""
        from pydantic import computed_field

        class Order(BaseModel):
            price: int
            pieces: int = 1

            @computed_field
            @property
            def total(self) -> int:
                return self.price * self.pieces

        async def handle(event: Event[Order], ctx: Context) -> Order: ...
    """)

    function = load_text(ENDPOINT)

    assert function.response_schema is not None
    assert function.request_schema is not None
    assert [*function.response_schema["properties"]] == ["price", "pieces", "total"]
    assert function.response_schema["required"] == ["price", "total"]
    assert [*function.request_schema["properties"]] == ["price", "pieces"]
    assert function.request_schema["required"] == ["price"]


def test_a_module_that_is_named_like_one_of_python_is_refused_with_the_reason() -> None:
    write("async def handle(ctx: Context) -> None: ...", "json.py")
    write("async def handle(ctx: Context) -> None: ...", "queue/__init__.py")
    write("async def handle(ctx: Context) -> None: ...", "queue/inner.py")

    assert problems_of(SERVICE, handler="json:handle") == [
        "m.yaml:4: functions.f.handler: json is Python's own, which hides json.py; give yours"
        " another name"
    ]
    for handler in ("queue:handle", "queue.inner:handle"):
        assert problems_of(SERVICE, handler=handler) == [
            "m.yaml:4: functions.f.handler: queue is Python's own, which hides queue/__init__.py;"
            " give yours another name"
        ]


def test_a_module_that_is_named_like_one_that_the_host_uses_is_refused_with_the_reason() -> None:
    write("async def handle(ctx: Context) -> None: ...", "click.py")

    [problem] = problems_of(SERVICE, handler="click:handle")

    assert problem.startswith("m.yaml:4: functions.f.handler: click is the one in /")
    assert problem.endswith("which hides click.py; give yours another name")


def test_a_module_in_the_folder_does_not_become_python_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    write("raise RuntimeError", "zipapp.py")
    write("import zipapp\nasync def handle(ctx: Context) -> None: ...")

    # A module of Python's that is not imported yet, as a library may import it at any time.
    monkeypatch.delitem(sys.modules, "zipapp", raising=False)
    assert load_text(SERVICE).name == "f"


def test_a_method_of_an_object_is_a_handler() -> None:
    write("""
        class Till:
            def __init__(self) -> None:
                self.total = 0

            async def count(self, event: Event[bytes], ctx: Context) -> None:
                self.total += 1

            @staticmethod
            async def ring(event: Event[bytes], ctx: Context) -> None: ...

            @classmethod
            def close(cls, event: Event[bytes], ctx: Context) -> None: ...

        till = Till()
    """)

    function = load_text(CONSUMER, handler="sample:till.count")

    assert function.handler == sys.modules["sample"].till.count
    assert (function.shape, function.is_async) == ("event", True)
    assert load_text(CONSUMER, handler="sample:Till.ring").is_async
    assert not load_text(CONSUMER, handler="sample:Till.close").is_async


def test_a_method_without_its_object_is_refused_with_the_way_out() -> None:
    write("""
        class Till:
            async def count(self, event: Event[bytes], ctx: Context) -> None: ...

        till = Till()
    """)

    assert problems_of(CONSUMER, handler="sample:Till.count") == [
        "m.yaml:4: functions.f.handler: Till.count is a method of a class, and there is no object"
        " to call it on; make one in the module and name its method: `it = Till(…)`,"
        " `sample:it.count`"
    ]
    assert problems_of(CONSUMER, handler="sample:till.cuont") == [
        "m.yaml:4: functions.f.handler: sample:till has no cuont; did you mean count?"
    ]


def test_a_secret_that_was_not_found_gives_no_second_problem() -> None:
    write("""
        from pydantic import model_validator

        class Settings(BaseModel):
            token: SecretStr
            size: int
            parts: list[str]

            @field_validator("parts", mode="before")
            @classmethod
            def split(cls, parts: list[str]) -> list[str]:
                return [part.strip() for part in parts]

            @model_validator(mode="before")
            @classmethod
            def check(cls, given: dict[str, str]) -> dict[str, str]:
                if given["token"][:2] != "t-":
                    raise ValueError("begins with something else")
                return given

        async def handle(ctx: Context) -> None: ...
    """)
    text = (
        "functions:\n"
        "  f:\n"
        "    handler: sample:handle\n"
        "    service: true\n"
        "    settings:\n"
        "      token: {from_env: ABSENT}\n"
        "      parts: ['${ABSENT}', b]\n"
    )
    Path("m.yaml").write_text(text)
    reading = read_what_is_right([Path("m.yaml")], {})

    load_all(reading.manifest)

    problems = [str(problem) for problem in reading.problems]
    assert problems == [
        "m.yaml:6: functions.f.settings.token: the variable ABSENT is not set; set it to the secret",
        "m.yaml:7: functions.f.settings.parts[0]: the variable ABSENT is not set; set it, or give a"
        " default: ${ABSENT:-…}",
    ]


def test_a_validator_of_settings_that_fails_by_itself_is_told_without_what_it_said() -> None:
    write("""
        class Settings(BaseModel):
            token: str

            @field_validator("token")
            @classmethod
            def check(cls, token: str) -> str:
                raise KeyError(token)

        async def handle(ctx: Context) -> None: ...
    """)

    assert problems_of(SERVICE, "    settings: {token: hidden}\n") == [
        "m.yaml:6: functions.f.settings: Settings raised KeyError when it was filled; correct its"
        " validators"
    ]


@pytest.mark.parametrize(
    ("binding", "source", "expected"),
    [
        (CONSUMER, "async def handel(event: Event[bytes], ctx: Context): ...", "module sample has no handle; did you mean handel?"),
        (CONSUMER, "handle = 5", "the handler is of type int, not a function; a consumer needs def handler(event: Event[T], ctx: Context) or (batch: Batch[T], ctx: Context)"),
        (CONSUMER, "class handle: ...", "the handler is a class, not a function; a consumer needs def handler(event: Event[T], ctx: Context) or (batch: Batch[T], ctx: Context)"),
        (CONSUMER, "async def handle(event: Event[bytes]): ...", "the handler takes (event: runtime.message.Event[bytes]); a consumer needs def handler(event: Event[T], ctx: Context) or (batch: Batch[T], ctx: Context)"),
        (CONSUMER, "async def handle(event: Event[bytes], ctx: Context, more): ...", "the handler takes (event: runtime.message.Event[bytes], ctx: runtime.context.Context, more); a consumer needs def handler(event: Event[T], ctx: Context) or (batch: Batch[T], ctx: Context)"),
        (CONSUMER, "async def handle(event, ctx): ...", "parameter event has no annotation, which says how to decode the payload; annotate it Event[bytes] for raw bytes; a consumer needs def handler(event: Event[T], ctx: Context) or (batch: Batch[T], ctx: Context)"),
        (CONSUMER, "async def handle(event: bytes, ctx): ...", "parameter event is annotated bytes; a consumer needs def handler(event: Event[T], ctx: Context) or (batch: Batch[T], ctx: Context)"),
        (CONSUMER, "async def handle(event: Event, ctx): ...", "parameter event does not say what its Event holds; write Event[bytes] for raw bytes, or a model's name in the brackets"),
        (CONSUMER, "async def handle(event: Event[bytes], ctx: dict): ...", "parameter ctx is annotated dict; annotate it Context or Context[State]"),
        (CONSUMER, "async def handle(event: 'Event[Absent]', ctx: Context): ...", "the annotation Absent is unknown when the module runs; import it outside of `if TYPE_CHECKING:`"),
        (CONSUMER, "async def handle(event: Event[BaseException], ctx: Context): ...", "<class 'BaseException'> cannot be decoded from JSON; use a pydantic model, a dataclass, a TypedDict, a plain type, or bytes for raw bytes"),
        (CONSUMER, "async def handle(event: Event[bytes], ctx: Context):\n    yield", "the handler yields, so calling it runs nothing; return instead of yielding"),
        (ENDPOINT, "async def handle(batch: Batch[bytes], ctx: Context): ...", "an endpoint answers one request at a time, not a Batch; an endpoint needs def handler(event: Event[T], ctx: Context)"),
        (ENDPOINT, "async def handle(event: Event[bytes], ctx: Context) -> BaseException: ...", "the return type <class 'BaseException'> cannot be written as JSON; return a pydantic model, a dict, a list, a plain type, bytes or None"),
        (SERVICE, "def handle(ctx: Context): ...", "a service must be async, to notice that it shall stop; write async def"),
        (SCHEDULE, "async def handle(event: Event[bytes], ctx: Context): ...", "the handler takes (event: runtime.message.Event[bytes], ctx: runtime.context.Context); a schedule needs def handler(ctx: Context)"),
        (SERVICE, "async def handle(ctx: Context): ...\nasync def start(): ...", "sample.start cannot be called with a context; write `async def start(ctx: Context)`, or rename it"),
        (SERVICE, "async def handle(ctx: Context): ...\nSettings = 5", "sample.Settings is not a pydantic model; let it inherit from pydantic.BaseModel"),
        (SERVICE, "import json\njson.loads('{')", "importing sample failed at sample.py:5: JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); correct the module"),
        (SERVICE, "def broken(:", "importing sample failed at sample.py:4: SyntaxError: invalid syntax (sample.py, line 4); correct the module"),
        (SERVICE, "import absent_library", "importing sample failed at sample.py:4: ModuleNotFoundError: No module named 'absent_library'; correct the module"),
        (SERVICE, "import sys\nsys.exit(3)", "importing sample failed at sample.py:5: SystemExit: 3; correct the module"),
    ],
)  # fmt: skip
def test_a_handler_that_cannot_be_used_is_told_why(
    binding: str, source: str, expected: str
) -> None:
    write(source)

    assert problems_of(binding) == [f"m.yaml:4: functions.f.handler: {expected}"]


def test_a_missing_module_is_named_with_its_neighbours() -> None:
    write("", "package/__init__.py")
    write("", "package/ingest.py")

    assert problems_of(SERVICE, handler="package.ingets:handle") == [
        "m.yaml:4: functions.f.handler: there is no module package.ingets; did you mean ingest?"
    ]
    assert problems_of(SERVICE, handler="elsewhere.module:handle") == [
        "m.yaml:4: functions.f.handler: there is no module elsewhere; install it, or start in"
        " the folder that holds it"
    ]


def test_settings_are_filled_and_secrets_opened_for_the_model() -> None:
    write("""
        class Settings(BaseModel):
            url: str = "http://localhost"
            token: SecretStr
            ports: list[int] = []

        async def handle(ctx: Context) -> None: ...
    """)
    Path("key").write_text("hidden")

    function = load_text(
        SERVICE, "    settings: {token: {from_file: key}, ports: ['${PORT:-1}', 2]}\n"
    )

    assert function.settings.url == "http://localhost"
    assert function.settings.token == SecretStr("hidden")
    assert function.settings.ports == [1, 2]


def test_wrong_settings_are_reported_where_they_stand_and_never_shown() -> None:
    write("""
        class Inner(BaseModel):
            size: int

        class Settings(BaseModel):
            url: str
            token: str
            inner: Inner
            depth: int = 1

            @field_validator("token")
            @classmethod
            def check(cls, token: str) -> str:
                raise ValueError(f"{token} is no token")

        async def handle(ctx: Context) -> None: ...
    """)
    Path("key").write_text("hidden")

    assert problems_of(
        SERVICE,
        "    settings:\n"
        "      token: {from_file: key}\n"
        "      inner:\n"
        "        size: private\n"
        "      depht: 2\n",
    ) == [
        "m.yaml:10: functions.f.settings.depht: no such key; did you mean depth?",
        "m.yaml:6: functions.f.settings.url: is missing; add `url:`",
        "m.yaml:7: functions.f.settings.token: ********** is no token; see the reference",
        "m.yaml:9: functions.f.settings.inner.size: the value is not a whole number; write a whole number",
    ]


def test_settings_without_a_model_to_fill_are_refused() -> None:
    write("async def handle(ctx: Context) -> None: ...")

    assert problems_of(SERVICE, "    settings: {a: 1}\n") == [
        "m.yaml:4: functions.f.handler: module sample has no Settings; add `class Settings(BaseModel)`"
        " there, or remove `settings:`"
    ]


def test_a_batch_size_for_a_handler_of_single_events_is_refused() -> None:
    write("async def handle(event: Event[bytes], ctx: Context) -> None: ...")

    assert problems_of(CONSUMER, "    batch: {size: 5}\n") == [
        "m.yaml:6: functions.f.batch: has no effect, as the handler takes one Event at a time; remove"
        " it, or let the handler take a Batch"
    ]


def test_all_functions_are_tried_before_any_problem_is_raised() -> None:
    write("async def handle(ctx: Context) -> None: ...")
    manifest = read_text("""
functions:
  one: {handler: 'sample:absent', service: true}
  two: {handler: 'sample:handle', service: true}
  three: {handler: 'absent_package:handle', service: true}
""")

    with pytest.raises(ConfigError) as caught:
        load_all(manifest)

    assert [problem.field for problem in caught.value.problems] == [
        "functions.one.handler",
        "functions.three.handler",
    ]


def test_a_function_can_be_loaded_without_a_manifest_file() -> None:
    write("async def handle(ctx: Context) -> None: ...")
    spec = FunctionSpec(handler="sample:handle", service=True)

    assert load("f", spec).shape == "service"
    with pytest.raises(ConfigError, match=r"functions\.f\.handler: module sample has no x"):
        load("f", spec.model_copy(update={"handler": "sample:x"}))


def test_the_docstring_describes_a_function_that_the_manifest_does_not() -> None:
    write('async def handle(event: Event[bytes], ctx: Context) -> None:\n    """Counts."""\n')

    assert load_text(CONSUMER).description == "Counts"
    assert load_text(CONSUMER, "    description: Written\n").description == "Written"


def test_a_handler_may_have_a_consumer_and_an_endpoint_as_triggers() -> None:
    write("async def handle(event: Event[bytes], ctx: Context) -> int: return 1\n")
    manifest = read_text(
        "streams: {S: {subjects: [s]}}\n"
        "functions: {f: {handler: 'sample:handle', triggers: {c: {consumer: {stream: S}}, e: {endpoint: {subject: e}}}}}"
    )

    functions = load_all(manifest)

    assert (functions["f_c"].shape, functions["f_e"].response_schema) == (
        "event",
        {"type": "integer"},
    )


def test_a_mistake_in_the_handler_of_several_triggers_is_told_once_where_it_is_written() -> None:
    write("def handle(): pass\n")
    with pytest.raises(ConfigError) as caught:
        load_all(
            read_text(
                "functions:\n"
                "  f:\n"
                "    handler: sample:absent\n"
                "    triggers: {a: {endpoint: {subject: a}}, b: {endpoint: {subject: b}}}\n"
            )
        )

    [problem] = caught.value.problems
    assert (problem.where, problem.field) == ("m.yaml:3", "functions.f.handler")
