"""Calls one function without a host and without a server, for unit tests."""

import inspect
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

from runtime.loader import Function, load
from runtime.loader.payload import encode
from runtime.local.local_call import LocalFunction, LocalResult, Settling
from runtime.local.recorded_effects import Answers, RecordedEffects, Sent
from runtime.manifest.model import FunctionSpec
from runtime.message import DUE_AT, Message
from runtime.subjects import matches
from runtime.testing.errors import TestKitError
from runtime.testing.journal import has_data, listed
from runtime.testing.selection import Source, read_sources

STREAM = "TEST"
"""The stream that a message of a unit test comes from."""
_STORED_AT_NS = 1_767_225_600_000_000_000
"""The start of 2026: the same in every run."""
_RETRIED = ("nak", "park", "wait")
_MODULE = "test_of_a_function"
_MOST_LOADED = 256
_loaded: dict[tuple[Any, str], Function] = {}

Handler = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class CallResult:
    """What a call did, with assertions; a failed one prints all of it.

    Attributes:
        local: the details, such as `logs`, `failure`, `where` and `elapsed_s`.
    """

    local: LocalResult

    @property
    def settled(self) -> tuple[Settling, ...]:
        """How each message would be settled."""
        return self.local.settled

    @property
    def reply(self) -> bytes | None:
        """An endpoint's reply; None for other functions."""
        return self.local.reply

    def json(self) -> Any:  # noqa: ANN401 - whatever JSON holds
        """An endpoint's reply, decoded from JSON.

        Raises:
            AssertionError: the endpoint refused.
        """
        self._check(self.local.error is None and bool(self.local.reply), "a reply")
        return json.loads(self.local.reply or b"null")

    def published(self, pattern: str = ">") -> list[Sent]:
        """The messages that the function published on matching subjects."""
        return [
            each
            for each in self.local.sent
            if each.kind != "request" and matches(pattern, each.subject)
        ]

    def assert_acked(self) -> None:
        """Assert that every message would be acknowledged, or the endpoint has answered.

        Raises:
            AssertionError: with everything that the call did.
        """
        is_done = self.local.failure is None and self.local.error is None
        self._check(is_done and all(each.action == "ack" for each in self.settled), "all acked")

    def assert_retried(self, *, delay_s: float | None = None, reason: str = "") -> None:
        """Assert that a message would be tried again, after this delay if one is given.

        Raises:
            AssertionError: with everything that the call did.
        """
        found = [
            each
            for each in self.settled
            if each.action in _RETRIED and delay_s in (None, each.delay_s) and reason in each.reason
        ]
        self._check(bool(found), f"retried(delay_s={delay_s}, reason={reason!r})")

    def assert_rejected(self, code: str | None = None) -> None:
        """Assert that a message would become a dead letter, or that the endpoint has refused.

        Raises:
            AssertionError: with everything that the call did.
        """
        codes = [each.code for each in self.settled if each.action == "dead letter"]
        if self.local.error is not None:
            codes.append(self.local.error[1])
        self._check(bool(codes) if code is None else code in codes, f"rejected({code})")

    def assert_published(
        self,
        subject: str = ">",
        data: Any = None,  # noqa: ANN401 - bytes, or what becomes JSON
        *,
        count: int | None = None,
    ) -> list[Sent]:
        """Assert that the function published on the subject.

        Raises:
            AssertionError: with everything that the call did.
        """
        found = [each for each in self.published(subject) if data is None or has_data(each, data)]
        is_right = bool(found) if count is None else len(found) == count
        self._check(is_right, f"published({subject!r}, {data!r}, count={count})")
        return found

    def __str__(self) -> str:
        error = self.local.error
        answer = [f"{error[0]} {error[1]}"] if error else []
        failure = self.local.failure
        raised = [f"{type(failure).__name__}: {failure} at {self.local.where}"] if failure else []
        parts = [
            listed("settling decisions", self.settled),
            listed("refused", answer),
            listed("raised", raised),
            listed("sent", self.local.sent),
            listed("logged", self.local.logs),
        ]
        return "\n".join(parts)

    def _check(self, is_right: bool, wanted: str) -> None:
        if not is_right:
            raise AssertionError(f"expected {wanted}\n{self}")


async def call(
    handler: Handler | str,
    data: Any = b"",  # noqa: ANN401 - bytes, what becomes JSON, a message, or a list of these
    *,
    subject: str = "test",
    headers: Mapping[str, str] | None = None,
    attempt: int = 1,
    manifests: Source | None = None,
    settings: Mapping[str, Any] | None = None,
    state: Any = None,  # noqa: ANN401 - the function's own
    answers: Answers | None = None,
    resources: Mapping[str, Any] | None = None,
    database_url: str | None = None,
    **spec: Any,  # noqa: ANN401 - fields of a manifest
) -> CallResult:
    """Call a function once, and say what the host would do.

    The payload passes through bytes, and the function's `start` and `stop` run as in a host. A
    handler with a return type other than None is an endpoint, one with only a context a schedule,
    any other a consumer.

    Args:
        handler: the function, or its name in `manifests`.
        data: the payload: bytes as they are, other values as JSON; for a batch a list of payloads.
        subject: subject of the message.
        headers: headers of the message.
        attempt: number of the attempt; at the last one a failure is a dead letter.
        manifests: file, folder or content of a manifest that has the function.
        settings: values for the module's `Settings`.
        state: what `ctx.state` is; `start` and `stop` are then not called.
        answers: what `ctx.request` is answered with, by subject pattern.
        resources: what `ctx.postgres` and `ctx.http` are.
        database_url: PostgreSQL's address, in place of `resources["postgres"]`.
        spec: other fields of the function's manifest entry, such as `timeout="1s"`.

    Raises:
        ConfigError: the function cannot be loaded, its `start` failed, or a resource is missing.
        TestKitError: `data` is not what the function takes.
    """
    function = _from_manifest(handler, manifests) if isinstance(handler, str) else None
    if function is None:
        function = _from_handler(handler, {**spec, "settings": dict(settings or {})})
    messages = _messages(function, data, subject, headers or {}, attempt)
    effects = RecordedEffects(answers, function=function.name)
    async with _resources(resources or {}, database_url) as given:
        local = LocalFunction(function, effects=effects, resources=given, state=state)
        async with local:
            return CallResult(await local.call(*messages))


def _from_manifest(name: str, source: Source | None) -> Function:
    if source is None:
        raise TestKitError(f"to call {name!r} by its name, say in which manifests it is")
    manifest = read_sources([source], None, [name])
    if name not in manifest.functions:
        known = ", ".join(manifest.functions) or "none"
        raise TestKitError(f"no manifest has the function {name}; functions: {known}")
    return load(name, manifest.functions[name], positions=manifest.positions)


def _from_handler(handler: Any, spec: Mapping[str, Any]) -> Function:  # noqa: ANN401 - unchecked
    key = (handler, repr(sorted(spec.items())))
    try:
        if (found := _loaded.get(key)) is not None:
            return found
    except TypeError:
        raise TestKitError(f"{handler!r} cannot be called as a function") from None
    stated = {"handler": f"{_MODULE}:handler", **_binding(handler, spec), **spec}
    name = getattr(handler, "__name__", "function").strip("_<>")[:64] or "function"
    uses = spec.get("uses", ("postgres", "http"))
    checked = FunctionSpec.model_validate({**stated, "uses": uses})
    if len(_loaded) >= _MOST_LOADED:
        _loaded.clear()
    function = _loaded[key] = load(name, checked, importer=_Given(handler))
    return function


def _binding(handler: Handler, spec: Mapping[str, Any]) -> dict[str, Any]:
    if spec.keys() & {"consumer", "endpoint", "schedule", "service"}:
        return {}
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        raise TestKitError(f"{handler!r} is not a function that can be called") from None
    if len(signature.parameters) == 1:
        return {"schedule": {"every": "1h"}}
    if signature.return_annotation in (None, "None", inspect.Signature.empty):
        return {"consumer": {"stream": STREAM}}
    return {"endpoint": {"subject": "test"}}


class _Given:
    """Implements `runtime.loader.loading.Importer` for a handler that is at hand."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def import_module(self, name: str) -> ModuleType:
        """A module with the handler, and with the settings and hooks beside it."""
        module = ModuleType(name)
        beside = inspect.getmodule(self._handler)
        for attribute in ("Settings", "start", "stop"):
            if hasattr(beside, attribute):
                setattr(module, attribute, getattr(beside, attribute))
        vars(module)["handler"] = self._handler
        return module

    def version_of(self, _name: str) -> str:
        """No version: nothing is reloaded."""
        return "test"


def _messages(
    function: Function,
    data: Any,  # noqa: ANN401 - as for `call`
    subject: str,
    headers: Mapping[str, str],
    attempt: int,
) -> list[Message]:
    if function.shape == "service":
        return []
    if function.shape != "batch":
        payloads: Sequence[Any] = [data]
    elif isinstance(data, list | tuple):
        payloads = data
    else:
        raise TestKitError(f"{function.name} takes a batch: give a list of payloads")
    found = []
    for sequence, payload in enumerate(payloads, 1):
        message = getattr(payload, "message", payload)
        if isinstance(message, Message):
            found.append(message)
            continue
        made = Message(
            subject,
            encode(payload),
            dict(headers),
            stream=STREAM if not function.spec.endpoint else "",
            sequence=sequence if not function.spec.endpoint else 0,
            attempt=attempt,
            stored_at_ns=_STORED_AT_NS + sequence,
        )
        if function.shape == "schedule":
            made.headers = {DUE_AT: datetime.now(UTC).isoformat(), **headers}
        found.append(made)
    return found


@asynccontextmanager
async def _resources(
    given: Mapping[str, Any], database_url: str | None
) -> AsyncIterator[Mapping[str, Any]]:
    if database_url is None:
        yield given
        return
    import asyncpg  # noqa: PLC0415 - most tests need no driver

    async with asyncpg.create_pool(database_url, min_size=1, max_size=4) as pool:
        yield {**given, "postgres": pool}


__all__ = ["CallResult", "call"]
