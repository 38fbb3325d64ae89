"""The policy of addresses that a tenant's destination may lead to."""

import pytest

from runtime import AddressPolicy, parse_networks


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104 - judged, not bound
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.7",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:2::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2002:c0a8:101::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not AddressPolicy().allows(address, 443)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "100.63.255.255",
        "172.32.0.1",
        "192.167.255.255",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
        "2001:4860:4860::8888",
        "2606:4700:4700::1111",
    ],
)
def test_a_public_address_is_allowed_in_each_of_its_forms(address: str) -> None:
    assert AddressPolicy().allows(address, 443)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::9"])
def test_an_opened_network_is_allowed_in_each_of_its_forms(address: str) -> None:
    assert AddressPolicy(parse_networks("10.0.0.0/8, fd00::/8")).allows(address, 443)


def test_opening_one_network_opens_no_other() -> None:
    policy = AddressPolicy(parse_networks("10.0.0.0/8"))
    assert not policy.allows("192.168.0.1", 443)
    assert not policy.allows("::1", 443)


def test_no_networks_are_read_from_an_empty_text() -> None:
    assert parse_networks("") == parse_networks(" , ") == ()


@pytest.mark.parametrize("text", ["10.0.0.1/8", "localhost", "10.0.0.0/33", "10/8", "localhost:80"])
def test_a_text_that_is_not_a_network_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=text.split("/", maxsplit=1)[0].split(":", maxsplit=1)[0]):
        parse_networks(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8090", "127.0.0.1"), ("127.0.0.0/8:8090", "127.1.2.3"), ("[::1]:8090", "::1")],
)
def test_a_network_with_a_port_is_allowed_at_that_port_alone(text: str, address: str) -> None:
    policy = AddressPolicy(parse_networks(text))
    assert policy.allows(address, 8090)
    assert not policy.allows(address, 8081)


@pytest.mark.parametrize("text", ["127.0.0.1:0", "127.0.0.1:65536", "[::1]:70000"])
def test_a_port_that_does_not_exist_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="port between 1 and 65535"):
        parse_networks(text)
