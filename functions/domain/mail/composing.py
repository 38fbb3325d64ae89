"""Composes an email: the bytes that are the same on every attempt. No I/O."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

# 7 bit: every server takes it, and a relay changes nothing in it.
_POLICY = SMTP.clone(cte_type="7bit")
_TENANT_DIGITS = 8


@dataclass(frozen=True, slots=True)
class File:
    """An attachment.

    Attributes:
        content_type: such as `application/pdf`.
    """

    name: str
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Mail:
    """An email.

    Attributes:
        message_id: the `Message-ID` without its angle brackets.
        sent_at: aware; the `Date`, the same on every attempt.
        text, html: at least one of them.
    """

    message_id: str
    sent_at: datetime
    sender: str
    to: Sequence[str]
    subject: str
    sender_name: str = ""
    cc: Sequence[str] = ()
    reply_to: str | None = None
    text: str | None = None
    html: str | None = None
    files: Sequence[File] = ()


def make_message_id(tenant_id: str, identity: str, sender: str) -> str:
    """A `Message-ID` without brackets that is the same on every attempt.

    A receiver's server that sees it twice may drop the second copy. Two tenants that chose the same
    id do not share it.

    Args:
        tenant_id: the tenant.
        identity: the tenant's id of the message: letters, digits, `-` and `_`.
        sender: an address, whose domain makes the id unique in the world.
    """
    tenant = hashlib.sha256(tenant_id.encode()).hexdigest()[:_TENANT_DIGITS]
    return f"{identity}.{tenant}@{sender.rpartition('@')[2]}"


def compose(mail: Mail) -> bytes:
    """The bytes of an email, lines ended by CRLF.

    `To` and `Cc` are headers only: the envelope says who receives it.

    Raises:
        ValueError: an address or a header's text holds a line break or is not an address.
    """
    message = EmailMessage(policy=_POLICY)
    message["Message-ID"] = f"<{mail.message_id}>"
    message["Date"] = format_datetime(mail.sent_at)
    message["From"] = Address(mail.sender_name, addr_spec=mail.sender)
    if mail.to:
        message["To"] = [Address(addr_spec=each) for each in mail.to]
    if mail.cc:
        message["Cc"] = [Address(addr_spec=each) for each in mail.cc]
    if mail.reply_to:
        message["Reply-To"] = Address(addr_spec=mail.reply_to)
    message["Subject"] = mail.subject
    if mail.text is not None:
        message.set_content(mail.text, cte="quoted-printable")
        if mail.html is not None:
            message.add_alternative(mail.html, subtype="html", cte="quoted-printable")
    else:
        message.set_content(mail.html or "", subtype="html", cte="quoted-printable")
    for file in mail.files:
        maintype, _, subtype = file.content_type.partition("/")
        message.add_attachment(file.data, maintype=maintype, subtype=subtype, filename=file.name)
    _name_the_boundaries(message, mail.message_id)
    return message.as_bytes()


def _name_the_boundaries(message: EmailMessage, message_id: str) -> None:
    """Give each multipart a boundary that is the same on every attempt."""
    for number, part in enumerate(message.walk()):
        if part.is_multipart():
            seed = f"{message_id}/{number}".encode()
            part.set_boundary(f"={hashlib.sha256(seed).hexdigest()[:40]}")


__all__ = ["File", "Mail", "compose", "make_message_id"]
