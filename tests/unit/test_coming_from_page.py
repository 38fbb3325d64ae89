"""What docs/coming-from.md says that there is here exists: keys, commands, names, addresses."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

import runtime
from runtime import Batch, Context, Reject, Retry
from runtime.cli import main
from runtime.manifest.model import (
    BatchSpec,
    ConsumerBindingSpec,
    EndpointBindingSpec,
    FunctionSpec,
    RateSpec,
    RetrySpec,
    ScheduleBindingSpec,
)
from tests.support.documentation import ROOT, in_code

PAGE = ROOT / "docs" / "coming-from.md"
SPECS: dict[str, type[BaseModel]] = {
    "batch": BatchSpec,
    "consumer": ConsumerBindingSpec,
    "endpoint": EndpointBindingSpec,
    "rate": RateSpec,
    "retry": RetrySpec,
    "schedule": ScheduleBindingSpec,
}
# Keys of an entry under one of the function's own.
INNER: dict[str, type[BaseModel]] = {
    "ack_wait": ConsumerBindingSpec,
    "filter_subjects": ConsumerBindingSpec,
    "max_ack_pending": ConsumerBindingSpec,
    "max_waiting": EndpointBindingSpec,
    "http": EndpointBindingSpec,
}
# The key before it in the same cell, of which this is another form.
FORMS = {"{schedule}": "retry", "{cron, timezone}": "schedule"}
ELSEWHERE = {
    "async def handler(event: Event[Order], ctx: Context)",
    *("def", "async", "ctx", "Event[…]", "Batch[…]", "Batch", "triggers:", "${VAR:-default}"),
    *("start(ctx)", "stop(ctx)"),
    *("/metrics", "code_version", "nats micro ls", "nats micro info", "nats micro stats"),
}
"""Python's own words, those of NATS, and what other tests read from a running host."""


def spans() -> list[str]:
    """What stands in code in the columns about this project, once each."""
    found: dict[str, None] = {}
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("|"):
            cells = line.strip().strip("|").split("|")
            found.update(dict.fromkeys(in_code("|".join(cells[1:]))))
    return list(found)


def is_command(words: list[str]) -> bool:
    command: click.Command | None = main
    with click.Context(main) as context:
        for word in words:
            if word.startswith("--"):
                return any(word in option.opts for option in command.params) if command else False
            if isinstance(command, click.Group):
                command = command.get_command(context, word)
            elif not word.isdigit():
                return False
    return command is not None


def are_keys(text: str) -> bool:
    read: Any = yaml.safe_load(text)
    if isinstance(read, str):
        read = {read: None}
    for name, value in read.items():
        inner = INNER.get(name)
        if name not in FunctionSpec.model_fields and not (inner and name in inner.model_fields):
            return False
        if isinstance(value, dict) and not value.keys() <= SPECS[name].model_fields.keys():
            return False
        if isinstance(value, dict) and all(each is not None for each in value.values()):
            SPECS[name].model_validate(value)
    return True


def is_python(text: str) -> bool:
    if found := re.fullmatch(r"(?:await )?(ctx|batch)\.(\w+)(\(.*\))?", text):
        return hasattr({"ctx": Context, "batch": Batch}[found[1]], found[2])
    if found := re.fullmatch(r"raise (\w+)\((.*)\)", text):
        names = [part.partition("=")[0].strip() for part in found[2].split(",")]
        kind: Callable[..., Any] = {"Retry": Retry, "Reject": Reject}[found[1]]
        return set(names) <= set(inspect.signature(kind).parameters)
    if text.startswith("runtime.testing"):
        module, _, name = text.rpartition(".")
        owner = __import__(module, fromlist=[name])
        return name == "testing" or hasattr(owner, name)
    return hasattr(runtime, text)


@pytest.mark.parametrize("text", [each for each in spans() if each not in ELSEWHERE])
def test_what_the_tables_name_exists(text: str) -> None:
    if text.startswith("--"):
        assert is_command(["serve", text])
    elif text.startswith("runtime "):
        assert is_command(text.split()[1:])
    elif text in FORMS:
        assert are_keys(f"{FORMS[text]}: {text}")
    elif text[:1].isupper() or re.match(r"raise |await |ctx\.|batch\.|runtime\.", text):
        assert is_python(text)
    else:
        assert are_keys(text)


def test_every_word_of_others_is_one_that_the_page_has() -> None:
    assert set(spans()) >= ELSEWHERE


def test_a_timeout_is_at_most_a_day() -> None:
    [limit] = [
        each.le for each in FunctionSpec.model_fields["timeout"].metadata if hasattr(each, "le")
    ]
    assert limit == 24 * 3600
    assert "`timeout` of at most a day" in PAGE.read_text("utf-8")
