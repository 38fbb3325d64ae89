"""Texts with fields of a job in braces, such as `{device_id}: {payload.metrics.temp} °C`.

A template looks up paths and does nothing else: it calls nothing, and every value and the whole
text are bounded, so a tenant's template can neither run code nor grow without limit.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC
from functools import lru_cache
from typing import Annotated, Any

from pydantic import StringConstraints

from functions.route_delivery.job import Job, without_device_secret

MAX_TEMPLATE_CHARACTERS = 4000
MAX_VALUE_CHARACTERS = 1000
MAX_DEPTH = 16

_STEP = r'(?:[A-Za-z0-9_-]{1,128}|"[^"{}]{1,128}")'
# Also the pattern of the JSON schema, by which a route is checked when it is saved.
_FIELDS = "job_id|tenant_id|device_id|msg_type|topic|stored_at"
PATH_PATTERN = rf"(?:{_FIELDS}|payload(?:\.{_STEP}){{0,{MAX_DEPTH}}})"
TEMPLATE_PATTERN = rf"^(?:[^{{}}]|\{{\{{|\}}\}}|\{{{PATH_PATTERN}\}})*$"
_PART = re.compile(rf"\{{\{{|\}}\}}|\{{({PATH_PATTERN})\}}")
_STEPS = re.compile(_STEP)

FieldPath = Annotated[str, StringConstraints(max_length=1024, pattern=rf"^{PATH_PATTERN}$")]
TemplateText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_TEMPLATE_CHARACTERS, pattern=TEMPLATE_PATTERN),
]


def look_up(path: str, job: Job) -> Any:  # noqa: ANN401 - whatever the device has sent
    """The value at a path such as `payload.metrics."room temp"`; None when there is none.

    A step into a list is its index, from 0. The device's provision token is never found.
    """
    name, _, rest = path.partition(".")
    if name == "stored_at":
        return job.stored_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if name != "payload":
        return getattr(job, name)
    value = without_device_secret(job.payload)
    for step in _STEPS.findall(rest):
        key = step.strip('"')
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isascii() and key.isdigit():
            value = value[int(key)] if int(key) < len(value) else None
        else:
            return None
    return value


def render(
    template: str, job: Job, *, escape: Callable[[str], str] = str, max_characters: int = 10_000
) -> str:
    """The text with the job's values in place of the paths.

    Args:
        template: checked by `TEMPLATE_PATTERN`.
        job: where the values are looked up.
        escape: applied to each value, and not to the template's own text.
        max_characters: bound on the text; what exceeds it is cut.
    """
    text: list[str] = []
    room = max_characters
    for literal, path in _parts(template):
        part = literal + (escape(as_text(look_up(path, job))) if path else "")
        text.append(part[:room])
        room -= len(part)
        if room <= 0:
            break
    return "".join(text)


def as_text(value: Any) -> str:  # noqa: ANN401 - whatever the device has sent
    """A value as text of at most 1000 characters: strings as they are, None empty, others JSON."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) > MAX_VALUE_CHARACTERS:
        text = text[: MAX_VALUE_CHARACTERS - 1] + "…"
    # Half a pair of surrogates is legal in JSON and in no UTF-8 text.
    return text.encode(errors="replace").decode()


@lru_cache(maxsize=2048)
def _parts(template: str) -> tuple[tuple[str, str], ...]:
    """Pairs of literal text and the path that follows it; the last path is empty."""
    parts: list[tuple[str, str]] = []
    literal, end = "", 0
    for found in _PART.finditer(template):
        literal += template[end : found.start()]
        end = found.end()
        if found[1]:
            parts.append((literal, found[1]))
            literal = ""
        else:
            literal += found[0][0]
    return (*parts, (literal + template[end:], ""))


__all__ = [
    "PATH_PATTERN",
    "TEMPLATE_PATTERN",
    "FieldPath",
    "TemplateText",
    "as_text",
    "look_up",
    "render",
]
