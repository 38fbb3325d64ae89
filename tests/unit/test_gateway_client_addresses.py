from ipaddress import ip_network
from typing import Any

import pytest

from functions.http_gateway.client_addresses import ClientAddresses


def scope(client: str | None, *forwarded: str) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return {"client": (client, 1) if client else None, "headers": headers}


@pytest.mark.parametrize(
    ("client", "forwarded", "source"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7, nonsense"], "10.0.0.1"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("2001:db8::1", [], "2001:db8::/64"),
        ("2001:db8::ffff:1", [], "2001:db8::/64"),
        (None, [], "unknown"),
        ("testclient", [], "unknown"),
    ],
)
def test_the_address_is_the_last_one_that_no_trusted_proxy_has(
    client: str | None, forwarded: list[str], source: str
) -> None:
    addresses = ClientAddresses([ip_network("10.0.0.0/8")])
    assert addresses.source(scope(client, *forwarded)) == source


def test_an_owner_has_all_addresses_of_its_network_and_a_proxy_none() -> None:
    addresses = ClientAddresses([ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48")])
    owners = {
        "192.0.2.1": "192.0.2.1",
        "::ffff:192.0.2.1": "192.0.2.1",
        "2001:db8::1": "2001:db8::/64",
        "2001:db8::ffff:1": "2001:db8::/64",
        "10.1.2.3": "",
        "2001:db8:1:2::3": "",
        "": "unknown",
    }
    assert {address: addresses.owner(address) for address in owners} == owners
