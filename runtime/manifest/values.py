"""Values of a manifest: durations, sizes, names and subjects, with their forms and limits."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints

from runtime.manifest.trigger import check_cron

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?")
_SIZE_UNITS_BYTES = {
    "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
}  # fmt: skip


class Seconds(float):
    """A number of seconds, for code that gives a duration to a model."""


def parse_duration(value: object) -> float:
    """Parse a duration such as `250ms`, `30s`, `1h30m` or `7d` to seconds.

    Raises:
        ValueError: anything else, a bare number included, as its unit would be a guess.
    """
    if isinstance(value, Seconds):
        return value
    if isinstance(value, str):
        parts = _DURATION.findall(value.strip())
        if parts and "".join(number + unit for number, unit in parts) == value.strip():
            return sum(float(number) * _DURATION_UNITS_S[unit] for number, unit in parts)
    raise ValueError(f"{value!r} is not a duration; write it like 250ms, 30s, 5m, 1h30m or 7d")


def parse_size(value: object) -> int:
    """Parse a size such as `8192`, `64KB`, `1GB` (powers of 1000) or `1GiB` (powers of 1024).

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        return int(float(found[1]) * _SIZE_UNITS_BYTES[found[2] or "B"])
    raise ValueError(f"{value!r} is not a size; write it like 8192, 64KB, 512MB or 1GiB")


def check_subject(subject: str) -> str:
    """The subject, if it is valid in NATS.

    Raises:
        ValueError: a `>` is anywhere but alone at the end.
    """
    if ">" in subject.split(".")[:-1]:
        raise ValueError(f"{subject!r} has a > in the middle; > may only be the last part")
    return subject


Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=str)]
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | str)]
NAME_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
MODULE_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
HANDLER_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
SUBJECT_PATTERN = r"^[^\s.]+(\.[^\s.]+)*$"
HTTP_PATH_PATTERN = r"^/[A-Za-z0-9_\-./{}]*$"
FIELD_PATTERN = r"^([^\s.]+\.)*[^\s.]+$"
QUEUE_GROUP_PATTERN = r"^[^\s]*$"
LINK_NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9 _-]{0,10}$"
LINK_URL_PATTERN = r"^[a-z][a-z0-9+.-]*://[!-~]+$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ModulePath = Annotated[str, StringConstraints(pattern=MODULE_PATTERN)]
Subject = Annotated[
    str,
    StringConstraints(pattern=SUBJECT_PATTERN, max_length=255),
    AfterValidator(check_subject),
]
LinkName = Annotated[str, StringConstraints(pattern=LINK_NAME_PATTERN)]
LinkUrl = Annotated[str, StringConstraints(pattern=LINK_URL_PATTERN, max_length=255)]
CronExpression = Annotated[str, StringConstraints(max_length=255), AfterValidator(check_cron)]


class Model(BaseModel):
    """Base of all models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
