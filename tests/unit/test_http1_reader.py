"""Requests are read the same way however their bytes arrive, and only if they mean one thing."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.http_gateway.http1.reader import BadHttp, Head, RequestReader

MAX_HEAD_BYTES = 1000
GET = b"GET /a%20b?q=1 HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;ext=1\r\nab\r\n1\r\nc\r\n0\r\nX-Token: of the trailer\r\n\r\n"
)
JAVA = (
    b"POST /j HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 3\r\nHost: h\r\n"
    b"HTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n\r\nabc"
)
LAST = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


class Requests:
    """The requests that a reader has found: method, path, headers and body of each."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.bodies: list[bytes] = []
        self.ended = 0

    def begin(self, head: Head) -> None:
        self.heads.append(head)
        self.bodies.append(b"")

    def add_body(self, part: bytes) -> None:
        self.bodies[-1] += part

    def end(self) -> None:
        self.ended += 1

    @property
    def seen(self) -> list[tuple[str, bytes, bytes]]:
        scopes = [head.scope for head in self.heads]
        return [
            (scope["method"], scope["raw_path"], body)
            for scope, body in zip(scopes, self.bodies, strict=True)
        ]


def read(parts: Sequence[bytes]) -> tuple[Requests, RequestReader]:
    requests = Requests()
    reader = RequestReader(requests, MAX_HEAD_BYTES)
    for part in parts:
        reader.feed(part)
    return requests, reader


@given(st.lists(st.integers(0, 600), max_size=30))
def test_requests_are_the_same_however_their_bytes_are_split(cuts: list[int]) -> None:
    stream = b"\r\n".join([GET, POST, CHUNKED, b"", JAVA, POST, LAST])
    places = sorted({0, *cuts, len(stream)})
    requests, reader = read([stream[a:b] for a, b in pairwise(places)])
    assert requests.seen == [
        ("GET", b"/a%20b", b""),
        ("POST", b"/p", b"abc"),
        ("POST", b"/c", b"abc"),
        ("POST", b"/j", b"abc"),
        ("POST", b"/p", b"abc"),
        ("GET", b"/last", b""),
    ]
    assert requests.ended == 6
    assert (reader.is_within, reader.is_finished) == (False, True)
    # A trailer is no header, neither of its own request nor of the next.
    names = {name for head in requests.heads for name, _ in head.scope["headers"]}
    assert b"x-token" not in names
    assert b"upgrade" not in names


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_no_bytes_do_anything_but_make_requests_or_a_refusal(parts: list[bytes]) -> None:
    try:
        requests, _ = read(parts)
    except BadHttp:
        return
    assert requests.ended <= len(requests.heads) <= requests.ended + 1


def test_the_target_is_split_before_it_is_decoded() -> None:
    requests, _ = read([GET.replace(b"%20", b"%2F%3F")])
    scope = requests.heads[0].scope
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (
        "/a/?b",
        b"/a%2F%3Fb",
        b"q=1",
    )


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\xff\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nab",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    ],
)
def test_what_two_readers_may_read_in_two_ways_is_refused(request_bytes: bytes) -> None:
    with pytest.raises(BadHttp) as refused:
        read([request_bytes])
    assert not refused.value.is_too_large


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /" + b"x" * 10,
        b"GET / HTTP/1.1\r\nX: ",
        b"\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;ext=",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
)
def test_bytes_that_bring_nothing_are_bounded(begun: bytes) -> None:
    filler = b"\r\n" if begun == b"\r\n" else b"x"
    with pytest.raises(BadHttp) as refused:
        read([begun, *[filler * 10] * MAX_HEAD_BYTES])
    assert refused.value.is_too_large


def test_small_chunks_make_no_body_too_large() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    requests, _ = read([head, *[b"1\r\na\r\n"] * MAX_HEAD_BYTES, b"0\r\n\r\n"])
    assert requests.bodies == [b"a" * MAX_HEAD_BYTES]


def test_nothing_is_read_after_a_request_that_says_it_is_the_last() -> None:
    requests, reader = read([LAST + GET])
    assert len(requests.heads) == 1
    assert reader.is_finished


def test_an_old_client_needs_no_host() -> None:
    requests, reader = read([b"GET / HTTP/1.0\r\n\r\n"])
    assert requests.heads[0].scope["http_version"] == "1.0"
    assert reader.is_finished
