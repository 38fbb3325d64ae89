"""What a message of each kind holds, bounded; the same models for HTTP and for NATS.

A message that another program publishes on a queue's subject may write its keys in camel case, as
`messageId`, and may leave its id and its tenant out.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

import orjson
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from functions.domain.identifiers import TenantId
from functions.domain.values import NO_NUL, JsonObject
from functions.domain.webhooks import check_url

Kind = Literal["sms", "email", "webhook"]

MAX_SMS_CHARACTERS = 1600
"""Source: Twilio, error 21617: a body has at most 1600 characters."""

MAX_EMAIL_BODY_CHARACTERS = 64_000
MAX_RECIPIENTS = 50
MAX_ATTACHMENTS = 10
MAX_ATTACHMENT_BYTES = 500_000
"""A message has at most 1 MB in NATS by default, and base64 makes four bytes of three."""

MessageId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
PhoneNumber = Annotated[str, StringConstraints(pattern=r"^\+[1-9][0-9]{1,14}$")]
"""A number in E.164's form."""

SmsSender = Annotated[
    str,
    # A number, a short code, an alphanumeric sender, or a messaging service of Twilio's.
    StringConstraints(
        pattern=r"^(\+[1-9][0-9]{1,14}|[0-9]{3,8}|MG[0-9a-f]{32}|[A-Za-z0-9][A-Za-z0-9 _-]{0,10})$"
    ),
]
Region = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,32}$")]
Priority = Literal["high", "normal", "bulk"]


def _check_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a header's text must not hold line breaks or control characters")
    return text


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a surrogate pair") from None
    return text


def _check_base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the content of an attachment must be base64") from None
    return text


EmailAddress = Annotated[
    str,
    StringConstraints(
        max_length=254,
        pattern=r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})+$",
    ),
]
HeaderText = Annotated[
    str, StringConstraints(max_length=998), AfterValidator(_check_line), AfterValidator(_check_text)
]
BodyText = Annotated[
    str,
    StringConstraints(max_length=MAX_EMAIL_BODY_CHARACTERS, pattern=NO_NUL),
    AfterValidator(_check_text),
]


class Content(BaseModel):
    """What messages of all kinds hold.

    Attributes:
        region: chooses the provider's account, together with the tenant.
        priority: which messages are sent first when they wait.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True, populate_by_name=True
    )

    kind: ClassVar[Kind]

    region: Region | None = None
    priority: Priority = "normal"

    def fingerprint(self) -> bytes:
        """SHA-256 of the content; a field added later with a default does not change it."""
        written = orjson.dumps([self.kind, self.plain()], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(written).digest()

    def plain(self) -> dict[str, Any]:
        """The content as JSON, without what is not stated."""
        return self.model_dump(mode="json", exclude_defaults=True, include=self.own_fields())

    @classmethod
    def own_fields(cls) -> set[str]:
        """The fields of the content itself: neither the ids nor what the gateway adds."""
        return set(cls.model_fields) - {"message_id", "tenant_id"}


class SmsContent(Content):
    """A text message.

    Attributes:
        to: the recipient's number in E.164's form, such as `+436641234567`.
        sender: the number, short code, name or messaging service to send from; without it the
            provider account's own.
        body: at most 1600 characters.
    """

    kind: ClassVar[Kind] = "sms"

    to: PhoneNumber
    sender: SmsSender | None = Field(
        None, validation_alias=AliasChoices("from", "sender"), serialization_alias="from"
    )
    body: Annotated[
        str,
        StringConstraints(min_length=1, max_length=MAX_SMS_CHARACTERS, pattern=NO_NUL),
        AfterValidator(_check_text),
    ] = Field(validation_alias=AliasChoices("body", "message", "text"))


class Attachment(BaseModel):
    """A file of an email.

    Attributes:
        filename: without a path.
        content: base64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    filename: Annotated[
        str,
        StringConstraints(min_length=1, max_length=200, pattern=r"^[^/\\]+$"),
        AfterValidator(_check_line),
        AfterValidator(_check_text),
    ] = Field(validation_alias=AliasChoices("filename", "fileName", "name"))
    content_type: Annotated[
        str,
        StringConstraints(
            max_length=127,
            pattern=r"^(application|audio|font|image|model|text|video)/[A-Za-z0-9.+-]+$",
        ),
    ] = Field(
        "application/octet-stream", validation_alias=AliasChoices("content_type", "contentType")
    )
    content: Annotated[str, AfterValidator(_check_base64)]

    @property
    def data(self) -> bytes:
        """The bytes of the file."""
        return base64.b64decode(self.content)


class EmailContent(Content):
    """An email: plain text, HTML, or both.

    Attributes:
        to: one address, or a list of at most 50.
        sender: the address to send from; without it the provider account's own.
        attachments: at most 10 files, of 500,000 bytes together.
    """

    kind: ClassVar[Kind] = "email"

    to: Annotated[tuple[EmailAddress, ...], Field(min_length=1, max_length=MAX_RECIPIENTS)]
    cc: Annotated[tuple[EmailAddress, ...], Field(max_length=MAX_RECIPIENTS)] = ()
    bcc: Annotated[tuple[EmailAddress, ...], Field(max_length=MAX_RECIPIENTS)] = ()
    sender: EmailAddress | None = Field(
        None, validation_alias=AliasChoices("from", "sender"), serialization_alias="from"
    )
    reply_to: EmailAddress | None = Field(
        None, validation_alias=AliasChoices("reply_to", "replyTo")
    )
    subject: HeaderText
    text: BodyText | None = Field(None, validation_alias=AliasChoices("text", "body"))
    html: BodyText | None = None
    attachments: Annotated[tuple[Attachment, ...], Field(max_length=MAX_ATTACHMENTS)] = ()

    @field_validator("to", "cc", "bcc", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_body(self) -> Self:
        if not self.text and not self.html:
            raise ValueError("an email needs a text, html, or both")
        return self

    @field_validator("attachments")
    @classmethod
    def _is_small(cls, attachments: tuple[Attachment, ...]) -> tuple[Attachment, ...]:
        if sum(len(each.content) for each in attachments) * 3 // 4 > MAX_ATTACHMENT_BYTES:
            raise ValueError(
                f"the attachments may have at most {MAX_ATTACHMENT_BYTES} bytes together"
            )
        return attachments


class WebhookContent(Content):
    """A webhook that a program sends by itself, in the form of Standard Webhooks.

    Attributes:
        url: where to send it.
        type: the event's type, such as `order.created`.
        data: the event.
    """

    kind: ClassVar[Kind] = "webhook"

    url: Annotated[
        str, StringConstraints(max_length=2048, pattern=NO_NUL), AfterValidator(check_url)
    ]
    type: Annotated[
        str, StringConstraints(max_length=128, pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")
    ] = Field("message", validation_alias=AliasChoices("type", "event", "eventType"))
    data: JsonObject = Field(
        default_factory=dict, validation_alias=AliasChoices("data", "payload", "body")
    )


_MessageIdField = Field(
    None,
    validation_alias=AliasChoices("message_id", "messageId", "emailId", "deliveryId", "smsId"),
)
_TenantField = Field(None, validation_alias=AliasChoices("tenant_id", "tenantId"))


class QueuedSms(SmsContent):
    """A message of subject `sms.send`."""

    message_id: MessageId | None = _MessageIdField
    tenant_id: TenantId | None = _TenantField


class QueuedEmail(EmailContent):
    """A message of subject `email.send`."""

    message_id: MessageId | None = _MessageIdField
    tenant_id: TenantId | None = _TenantField


class QueuedWebhook(WebhookContent):
    """A message of subject `webhooks.deliver` or `webhooks.retry`."""

    message_id: MessageId | None = _MessageIdField
    tenant_id: TenantId | None = _TenantField


Queued: TypeAlias = QueuedSms | QueuedEmail | QueuedWebhook


_BY_KIND: dict[Kind, type[QueuedSms | QueuedEmail | QueuedWebhook]] = {
    "sms": QueuedSms,
    "email": QueuedEmail,
    "webhook": QueuedWebhook,
}


def read_content(kind: Kind, text: str) -> Queued:
    """The content that `Content.plain` wrote, from its JSON.

    Raises:
        pydantic.ValidationError: the text is not such a content.
    """
    return _BY_KIND[kind].model_validate_json(text)


@dataclass(frozen=True, slots=True)
class Queue:
    """The stream of one kind.

    Attributes:
        send: the subject of messages to send.
        status: the subject of the messages that tell of each transition.
        durable: the consumer that sends.
    """

    stream: str
    send: str
    status: str
    durable: str


QUEUES: dict[Kind, Queue] = {
    "sms": Queue("SMS", "sms.send", "sms.status", "sms-worker"),
    "email": Queue("EMAIL", "email.send", "email.status", "email-worker"),
    "webhook": Queue("WEBHOOKS", "webhooks.deliver", "webhooks.status", "webhook-worker"),
}


@dataclass(frozen=True, slots=True)
class OutMessage:
    """A message with its ids, as it is sent.

    Attributes:
        accepted_at: aware; when its queue stored it, the same on every attempt; None before.
    """

    tenant_id: str
    message_id: str
    content: Any
    accepted_at: datetime | None = None

    @property
    def kind(self) -> Kind:
        """The kind."""
        kind: Kind = self.content.kind
        return kind

    def encode(self) -> bytes:
        """The message as it stands in its queue."""
        ids = {"message_id": self.message_id, "tenant_id": self.tenant_id}
        return orjson.dumps(ids | self.content.plain())
