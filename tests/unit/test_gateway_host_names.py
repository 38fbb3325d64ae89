"""Which names a gateway answers under that does not listen on loopback."""

import pytest

from functions.http_gateway.host_names import HostNames

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound


@pytest.mark.parametrize(
    ("allowed", "host", "right"),
    [
        ([], b"any.example", True),
        (["iot.example.com"], b"any.example", False),
        (["iot.example.com"], b"iot.example.com.:8080", True),
        (["iot.example.com"], b"", True),
    ],
)
def test_a_gateway_for_others_takes_any_name_unless_some_are_allowed(
    allowed: list[str], host: bytes, right: bool
) -> None:
    scope = {"type": "http", "headers": [(b"host", host)]}
    assert HostNames(_EVERYWHERE, allowed).allow(scope) == right


def test_a_request_that_names_no_host_is_no_browsers() -> None:
    assert HostNames("127.0.0.1", []).allow({"type": "http", "headers": []})
