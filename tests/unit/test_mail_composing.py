"""The bytes of an email: the same on every attempt, and nothing of a user becomes a header."""

import base64
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest

from functions.domain.mail.composing import File, Mail, compose, make_message_id

MAIL = Mail(
    "m1.0badcafe@example.com",
    datetime(2026, 8, 1, 12, tzinfo=UTC),
    "shop@example.com",
    ["ann@example.net", "bob@example.net"],
    "Grüße, your order",
    sender_name="The Shop, Vienna",
    cc=["cy@example.net"],
    reply_to="help@example.com",
    text="Hello,\n.\nyour order is on its way: 10 €\n",
    html="<p>Hello</p>",
    files=[File("Rechnung März.pdf", "application/pdf", b"%PDF-1.7\x00\xff")],
)


def parsed(mail: Mail) -> EmailMessage:
    message = message_from_bytes(compose(mail), policy=policy.SMTP)
    assert isinstance(message, EmailMessage)
    return message


def test_every_part_can_be_read() -> None:
    message = parsed(MAIL)
    text, html = message.get_body(("plain",)), message.get_body(("html",))
    [file] = message.iter_attachments()

    assert message["Message-ID"] == "<m1.0badcafe@example.com>"
    assert message["From"] == '"The Shop, Vienna" <shop@example.com>'
    assert message["To"] == "ann@example.net, bob@example.net"
    assert message["Cc"] == "cy@example.net"
    assert message["Reply-To"] == "help@example.com"
    assert message["Subject"] == "Grüße, your order"
    assert message["Date"] == "Sat, 01 Aug 2026 12:00:00 +0000"
    assert text is not None
    assert text.get_content().replace("\r\n", "\n") == MAIL.text
    assert html is not None
    assert html.get_content().strip() == "<p>Hello</p>"
    assert file.get_filename() == "Rechnung März.pdf"
    assert base64.b64decode(str(file.get_payload())) == b"%PDF-1.7\x00\xff"


def test_the_bytes_are_the_same_on_every_attempt_in_7_bits_and_with_crlf() -> None:
    data = compose(MAIL)

    assert data == compose(replace(MAIL))
    assert data.isascii()
    assert data.count(b"\n") == data.count(b"\r\n")
    assert max(map(len, data.split(b"\r\n"))) <= 998


def test_a_text_alone_and_html_alone_are_no_multipart() -> None:
    text = parsed(replace(MAIL, html=None, files=()))
    html = parsed(replace(MAIL, text=None, files=()))

    assert text.get_content_type() == "text/plain"
    assert html.get_content_type() == "text/html"


@pytest.mark.parametrize(
    "broken",
    [
        replace(MAIL, subject="a\r\nBcc: all@example.com"),
        replace(MAIL, subject="a\nb"),
        replace(MAIL, to=["ann@example.net\r\nBcc: all@example.com"]),
        replace(MAIL, reply_to="a@example.com\nX: y"),
        replace(MAIL, sender="shop@example.com>\r\nX: y"),
        replace(MAIL, sender_name="Shop\r\nBcc: all@example.com"),
    ],
)
def test_a_line_break_never_reaches_a_header(broken: Mail) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the library's texts differ between releases
        compose(broken)


def test_the_message_id_is_the_tenant_s_and_the_sender_s() -> None:
    first = make_message_id("acme", "m1", "shop@example.com")

    assert first == make_message_id("acme", "m1", "shop@example.com")
    assert first != make_message_id("other", "m1", "shop@example.com")
    assert first.startswith("m1.")
    assert first.endswith("@example.com")
