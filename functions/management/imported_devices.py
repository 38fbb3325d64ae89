"""Reads devices from a file of CSV or JSON lines, and decides about each. Does no I/O."""

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Literal, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from functions.domain import strict_json
from functions.domain.admission import Refused
from functions.domain.identifiers import DeviceId
from functions.domain.values import JsonObject, Name
from functions.management.device_tokens import Token, hash_token, make_token, too_short

Format = Literal["csv", "ndjson"]

_ROW_INVALID = "ROW_INVALID"
# Their texts are fixed or of this project, and repeat nothing of the row.
_TELLING = frozenset(
    {
        *("value_error", "string_pattern_mismatch", "string_too_long", "string_too_short"),
        *("greater_than_equal", "less_than_equal", "string_type", "dict_type", "int_parsing"),
    }
)


class FileInvalidError(ValueError):
    """The file as a whole cannot be read; the text says why."""


class DeviceRow(BaseModel):
    """A device of the file, as in a registration."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    device_id: DeviceId
    site_id: Name
    provision_token: Token | None = None
    metadata: JsonObject = Field(default_factory=dict)
    subscription_id: UUID | None = None
    sensor_limit: Annotated[int, Field(ge=0, le=10_000)] = 20

    @property
    def data(self) -> tuple[object, ...]:
        """What an existing device must have to be the same one."""
        return self.site_id, self.metadata, self.subscription_id, self.sensor_limit


class Line(NamedTuple):
    """A record of the file: its first line, and what it holds."""

    number: int
    content: object


class ReadDevice(NamedTuple):
    """A device whose row is right."""

    line: int
    row: DeviceRow


class RefusedRow(NamedTuple):
    """A row that is not registered, and why."""

    line: int
    refused: Refused


class Existing(NamedTuple):
    """A registered device."""

    data: tuple[object, ...]
    token_hash: bytes | None


class NewDevice(NamedTuple):
    """A device to register."""

    row: DeviceRow
    token_hash: bytes
    made_token: str | None


class Decided(NamedTuple):
    """What becomes of the rows.

    Attributes:
        new: devices to register.
        existing: how many are registered already, with the same data.
        refused: all others.
    """

    new: list[NewDevice]
    existing: int
    refused: list[RefusedRow]


def read_lines(form: Format, text: str, first_line: int) -> Iterator[Line]:
    """The records of a file; blank lines are left out. What cannot be read is a `Refused`.

    Raises:
        FileInvalidError: the header of the CSV is none.
    """
    text = text.removeprefix("\ufeff")
    return _read_csv(text, first_line) if form == "csv" else _read_ndjson(text, first_line)


def _read_csv(text: str, first_line: int) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns = _read_header(reader)
    while True:
        number = first_line + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield Line(number, Refused(_ROW_INVALID, "this is not CSV"))
            continue
        if len(cells) == len(columns):
            yield Line(number, _read_cells(dict(zip(columns, cells, strict=True))))
        elif cells:
            wrong = f"the row has {len(cells)} fields, the header has {len(columns)}"
            yield Line(number, Refused(_ROW_INVALID, wrong))


def _read_header(reader: Iterator[list[str]]) -> list[str]:
    known = DeviceRow.model_fields
    try:
        columns = [name.strip() for name in next(reader, [])]
    except csv.Error:
        columns = []
    if not columns or not known.keys() >= set(columns) or len(set(columns)) < len(columns):
        raise FileInvalidError(
            f"the first line must name each column once, out of {', '.join(known)}"
        )
    missing = [name for name, of in known.items() if of.is_required() and name not in columns]
    if missing:
        raise FileInvalidError(f"the first line lacks the column {missing[0]}")
    return columns


def _read_cells(cells: Mapping[str, str]) -> object:
    """The fields of a row; an empty cell is an absent field."""
    fields: dict[str, object] = {name: cell for name, cell in cells.items() if cell}
    if metadata := cells.get("metadata"):
        try:
            fields["metadata"] = strict_json.loads(metadata.encode())
        except (strict_json.BadJson, UnicodeEncodeError):
            return Refused(_ROW_INVALID, "metadata is not a JSON object")
    return fields


def _read_ndjson(text: str, first_line: int) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), first_line):
        if not line.strip():
            continue
        try:
            yield Line(number, strict_json.loads(line.encode()))
        except (strict_json.BadJson, UnicodeEncodeError):
            yield Line(number, Refused(_ROW_INVALID, "this is not acceptable JSON"))


def read_rows(
    lines: Iterable[Line], min_token_length: int, max_rows: int
) -> tuple[list[ReadDevice], list[RefusedRow]]:
    """The devices of a file, and the rows that are none.

    Raises:
        FileInvalidError: the file has more than `max_rows` rows.
    """
    read: list[ReadDevice] = []
    refused: list[RefusedRow] = []
    seen: dict[str, int] = {}
    for count, (number, content) in enumerate(lines, 1):
        if count > max_rows:
            raise FileInvalidError(f"the file has more than {max_rows} rows")
        row = _read_row(content, min_token_length)
        if not isinstance(row, Refused) and row.device_id in seen:
            row = Refused("DEVICE_REPEATED", f"line {seen[row.device_id]} names the same device")
        if isinstance(row, Refused):
            refused.append(RefusedRow(number, row))
            continue
        seen[row.device_id] = number
        read.append(ReadDevice(number, row))
    return read, refused


def _read_row(content: object, min_token_length: int) -> DeviceRow | Refused:
    if isinstance(content, Refused):
        return content
    try:
        row = DeviceRow.model_validate(content)
    except ValidationError as invalid:
        return Refused(_ROW_INVALID, _explain(invalid))
    token = row.provision_token
    if token is not None and len(token.get_secret_value()) < min_token_length:
        text = too_short(min_token_length)
        return Refused("TOKEN_TOO_SHORT", f"{text[0].lower()}{text[1:]}")
    return row


def _explain(invalid: ValidationError) -> str:
    """The first fault, without anything that the row contains."""
    fault = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(fault["loc"][0]) if fault["loc"] else ""
    if name not in DeviceRow.model_fields:
        return "the row has a field that is unknown" if name else "the row is not an object"
    if fault["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {fault['msg']}" if fault["type"] in _TELLING else f"{name} is not valid"


def decide(
    read: Iterable[ReadDevice],
    existing: Mapping[str, Existing],
    subscriptions: Collection[UUID],
    room: Mapping[UUID | None, int | None],
) -> Decided:
    """What becomes of the devices, in the order of the file.

    Args:
        read: the devices.
        existing: those of them that are registered already.
        subscriptions: the tenant's subscriptions, as far as the devices name them.
        room: how many devices each subscription has room for; None for any number.
    """
    left = dict(room)
    decided = Decided([], 0, [])
    same = 0
    for line, row in read:
        known = existing.get(row.device_id)
        subscription = row.subscription_id
        if known is not None:
            if _is_same(row, known):
                same += 1
            else:
                decided.refused.append(RefusedRow(line, _EXISTS))
        elif subscription is not None and subscription not in subscriptions:
            decided.refused.append(RefusedRow(line, _NO_SUBSCRIPTION))
        elif (free := left[subscription]) is not None and free <= 0:
            decided.refused.append(RefusedRow(line, _FULL))
        else:
            left[subscription] = None if free is None else free - 1
            decided.new.append(_new(row))
    return decided._replace(existing=same)


_EXISTS = Refused("DEVICE_EXISTS", "the device is registered with other data")
_NO_SUBSCRIPTION = Refused("SUBSCRIPTION_NOT_FOUND", "the tenant has no such subscription")
_FULL = Refused("DEVICE_LIMIT_REACHED", "the subscription has no room left")


def _is_same(row: DeviceRow, known: Existing) -> bool:
    """A row without a token has no opinion about that of the device."""
    token = row.provision_token
    if token is not None and hash_token(token.get_secret_value()) != known.token_hash:
        return False
    return row.data == known.data


def _new(row: DeviceRow) -> NewDevice:
    given = row.provision_token
    if given is not None:
        return NewDevice(row, hash_token(given.get_secret_value()), None)
    made = make_token()
    return NewDevice(row, hash_token(made), made)


__all__ = [
    "Decided",
    "DeviceRow",
    "Existing",
    "FileInvalidError",
    "Format",
    "Line",
    "NewDevice",
    "ReadDevice",
    "RefusedRow",
    "decide",
    "read_lines",
    "read_rows",
]
