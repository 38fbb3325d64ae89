"""Files of devices, read and decided without a database."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.management.device_tokens import hash_token
from functions.management.imported_devices import (
    Existing,
    FileInvalidError,
    Format,
    ReadDevice,
    decide,
    read_lines,
    read_rows,
)

GIVEN = "a-token-of-more-than-16-letters"


def read(text: str, form: Format = "csv", first_line: int = 1) -> tuple[list[ReadDevice], Any]:
    devices, refused = read_rows(read_lines(form, text, first_line), 16, 10_000)
    return devices, [(row.line, row.refused.reason, row.refused.detail) for row in refused]


def test_csv_has_the_columns_that_its_first_line_names() -> None:
    text = (
        "\ufeffsite_id,device_id,metadata,sensor_limit,provision_token\r\n"
        's1,d.1,"{""place"": ""roof, north""}",7,\r\n'
        "\r\n"
        f"s2,d:2,,,{GIVEN}\r\n"
    )
    devices, refused = read(text)
    assert refused == []
    first, second = devices
    assert (first.line, first.row.device_id, first.row.site_id) == (2, "d.1", "s1")
    assert (first.row.metadata, first.row.sensor_limit) == ({"place": "roof, north"}, 7)
    assert first.row.provision_token is None
    assert (second.line, second.row.sensor_limit) == (4, 20)
    assert second.row.provision_token is not None
    assert second.row.provision_token.get_secret_value() == GIVEN


def test_lines_are_counted_over_values_with_line_ends() -> None:
    text = 'device_id,site_id\n"a","first\nsite"\nb/c,s1\nd,s1\n'
    devices, refused = read(text)
    assert [(device.line, device.row.device_id) for device in devices] == [(2, "a"), (5, "d")]
    assert [line for line, *_ in refused] == [4]


def test_json_lines_are_objects_and_part_of_a_file_counts_on() -> None:
    text = '{"device_id": "a", "site_id": "s"}\r\n\n{"device_id": "b", "site_id": "\u2028"}\n5\n'
    devices, refused = read(text, "ndjson", first_line=101)
    assert [(device.line, device.row.device_id) for device in devices] == [(101, "a"), (103, "b")]
    assert refused == [(104, "ROW_INVALID", "the row is not an object")]


@pytest.mark.parametrize(
    "header",
    ["", "\n", "device_id", "device_id,site_id,color", "device_id,device_id,site_id", '"device_id'],
)
def test_a_header_that_is_none_refuses_the_file(header: str) -> None:
    with pytest.raises(FileInvalidError, match="the first line"):
        read(f"{header}\nd1,s1\n")


def test_a_file_with_too_many_rows_is_refused() -> None:
    lines = read_lines("csv", "device_id,site_id\n" + "d,s\n" * 11, 1)
    with pytest.raises(FileInvalidError, match="more than 10 rows"):
        read_rows(lines, 16, 10)


BAD: list[tuple[str, str]] = [
    ('{"site_id": "s"}', "device_id is missing"),
    ('{"device_id": "a/b", "site_id": "s"}', "device_id: String should match pattern"),
    ('{"device_id": "..", "site_id": "s"}', "device_id: String should match pattern"),
    ('{"device_id": "a", "site_id": ""}', "site_id: String should have at least 1"),
    ('{"device_id": "a", "site_id": "s", "hidden": 1}', "the row has a field that is unknown"),
    ('{"device_id": "a", "site_id": "s", "sensor_limit": -1}', "sensor_limit: Input should be"),
    ('{"device_id": "a", "site_id": "s", "subscription_id": "hidden"}', "subscription_id is not"),
    ('{"device_id": "a", "site_id": "s", "metadata": [1]}', "metadata: Input should be a valid"),
    ('{"device_id": "a", "site_id": "s", "provision_token": "hid den"}', "provision_token: Value"),
    ('{"device_id": "a", "site_id": "s", "site_id": "t"}', "this is not acceptable JSON"),
    ("hidden", "this is not acceptable JSON"),
]


@pytest.mark.parametrize(("line", "detail"), BAD)
def test_a_wrong_row_is_refused_without_repeating_it(line: str, detail: str) -> None:
    devices, refused = read(f'{line}\n{{"device_id": "good", "site_id": "s"}}', "ndjson")
    assert [device.line for device in devices] == [2]
    ((number, code, told),) = refused
    assert (number, code) == (1, "ROW_INVALID")
    assert told.startswith(detail)
    assert "hid" not in told


def test_a_short_token_and_a_second_row_of_a_device_are_refused() -> None:
    text = "device_id,site_id,provision_token\na,s,\nb,s,short\na,s,\nc,s\nd,s,,\n"
    devices, refused = read(text)
    assert [device.row.device_id for device in devices] == ["a"]
    assert refused == [
        (3, "TOKEN_TOO_SHORT", "a token must have at least 16 characters"),
        (4, "DEVICE_REPEATED", "line 2 names the same device"),
        (5, "ROW_INVALID", "the row has 2 fields, the header has 3"),
        (6, "ROW_INVALID", "the row has 4 fields, the header has 3"),
    ]


@pytest.mark.parametrize(
    "row", ['"a"b,s', '"never closed,s\nx,s\n', f'"{"x" * 200_000}",s', 'a,s,"{""b"": }"']
)
def test_what_is_not_csv_is_refused_as_a_row(row: str) -> None:
    devices, refused = read(f"device_id,site_id,metadata\n{row}\n")
    assert devices == []
    assert refused
    assert {code for _, code, _ in refused} == {"ROW_INVALID"}


@given(st.text(), st.sampled_from(["csv", "ndjson"]))
def test_no_file_breaks_the_reader(text: str, form: Format) -> None:
    for content in (text, f"device_id,site_id\n{text}"):
        try:
            devices, refused = read(content, form)
        except FileInvalidError:
            continue
        lines = [device.line for device in devices] + [line for line, *_ in refused]
        assert len(set(lines)) == len(lines)


def rows(count: int, **fields: Any) -> list[ReadDevice]:
    text = "device_id,site_id\n" + "".join(f"d{n},s\n" for n in range(count))
    devices, _ = read(text)
    return [each._replace(row=each.row.model_copy(update=fields)) for each in devices]


def test_devices_that_exist_with_the_same_data_are_no_fault() -> None:
    same: tuple[object, ...] = ("s", {}, None, 20)
    existing = {
        "d0": Existing(same, b"any"),
        "d1": Existing(("t", {}, None, 20), None),
        "d2": Existing(same, None),
    }
    decided = decide(rows(4), existing, [], {None: None})
    assert [new.row.device_id for new in decided.new] == ["d3"]
    assert decided.existing == 2
    assert [(row.line, row.refused.reason) for row in decided.refused] == [(3, "DEVICE_EXISTS")]


def test_a_given_token_has_to_be_that_of_the_device() -> None:
    devices, _ = read(f"device_id,site_id,provision_token\na,s,{GIVEN}\nb,s,{GIVEN}\n")
    existing = {
        "a": Existing(("s", {}, None, 20), hash_token(GIVEN)),
        "b": Existing(("s", {}, None, 20), hash_token("another")),
    }
    decided = decide(devices, existing, [], {None: 0})
    assert decided.existing == 1
    assert [row.refused.reason for row in decided.refused] == ["DEVICE_EXISTS"]


def test_room_is_used_in_the_order_of_the_file() -> None:
    subscription = uuid4()
    own = rows(2, subscription_id=subscription)
    unknown = rows(1, subscription_id=UUID(int=0))
    room: dict[UUID | None, int | None] = {None: 3, subscription: 1}
    decided = decide([*rows(5), *own, *unknown], {}, [subscription], room)
    assert [new.row.device_id for new in decided.new] == ["d0", "d1", "d2", "d0"]
    assert [row.refused.reason for row in decided.refused] == [
        *["DEVICE_LIMIT_REACHED"] * 3,
        "SUBSCRIPTION_NOT_FOUND",
    ]
    assert len({new.made_token for new in decided.new}) == 4
