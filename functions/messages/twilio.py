"""Sends text messages by Twilio's REST API, and looks up what became of them.

Source: Twilio, "Messages resource" (2010-04-01) and "Error and warning dictionary".
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urljoin

import httpx
import orjson
from pydantic import SecretStr

from functions.domain.retry_after import parse_retry_after
from functions.messages.contents import OutMessage, SmsContent
from functions.messages.provider import Receipt

MAX_ANSWER_BYTES = 262_144
_PAGE = 50
_MAX_PAGES = 5
_SKEW = timedelta(minutes=2)
_TRIAL_PREFIX = "Sent from your Twilio trial account - "

_OWN_FAULT_WAIT_S = 60.0
"""Wait after an error that no message causes, such as wrong credentials."""

_LONGEST_WAIT_S = 3600.0

# Errors of the account or the sender and not of the message: the same message may be sent later.
_NOT_THE_MESSAGES = frozenset({20003, 20005, 20404, 20429, 14107, 21611, 30001, 63038})
_BUSY_STATUSES = frozenset({401, 403, 404, 429})
# A gateway before the API may say so when the API has accepted the message.
_UNSURE_STATUSES = frozenset({502, 504})
_ARRIVED = frozenset({"delivered", "read"})
_GIVEN_UP = frozenset({"failed", "undelivered", "canceled"})


@dataclass(frozen=True, slots=True)
class TwilioAccount:
    """An account.

    Attributes:
        sender: number, short code, name or messaging service of messages that state none.
        base_url: without a slash at its end.
    """

    sid: str
    token: SecretStr = field(repr=False)
    sender: str
    base_url: str = "https://api.twilio.com"

    @property
    def messages_url(self) -> str:
        """The account's collection of messages, without an extension."""
        return f"{self.base_url}/2010-04-01/Accounts/{quote(self.sid, safe='')}/Messages"


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message that the provider knows.

    Attributes:
        is_this: whether its text is that of the message that is looked up.
    """

    provider_id: str
    receipt: Receipt
    created_at: datetime
    is_this: bool


class LookUpFailed(Exception):  # noqa: N818 - an outcome, as those of the runtime
    """The provider did not answer a look-up; the reason holds no content and no secret."""


class TwilioClient:
    """Calls the API.

    Args:
        http: follows no redirects; a redirect would send the credentials elsewhere.
        timeout_s: time limit of one request.
    """

    def __init__(self, http: httpx.AsyncClient, timeout_s: float) -> None:
        self._http = http
        self._timeout_s = timeout_s

    async def send(self, message: OutMessage, account: TwilioAccount) -> Receipt:
        """Create a message; see `judge` for what an answer means."""
        content: SmsContent = message.content
        sender = content.sender or account.sender
        kind = "MessagingServiceSid" if sender.startswith("MG") and len(sender) == 34 else "From"  # noqa: PLR2004 - a SID's length
        form = {"To": content.to, kind: sender, "Body": content.body}
        try:
            status, headers, body = await self._ask("POST", account, ".json", form)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as failure:
            return Receipt("failed", "CONNECTION_FAILED", f"no connection: {_kind(failure)}")
        except (httpx.UnsupportedProtocol, httpx.InvalidURL):
            reason = "the base URL of the account is not one"
            return Receipt("busy", "ACCOUNT_INVALID", reason, retry_after_s=_OWN_FAULT_WAIT_S)
        except (httpx.HTTPError, TimeoutError) as failure:
            # The request may have arrived, so the message may be on its way.
            return Receipt("unknown", "CONNECTION_LOST", f"no answer: {_kind(failure)}")
        return judge(status, headers, body, now=datetime.now(UTC))

    async def find_state(self, provider_id: str, account: TwilioAccount) -> Receipt | None:
        """What became of a sent message; None while it is on its way.

        Raises:
            LookUpFailed: the provider did not say.
        """
        found = await self._get(account, f"/{quote(provider_id, safe='')}.json")
        receipt = _receipt_of(found)
        return None if receipt.outcome == "sent" else receipt

    async def list_sent(
        self, message: OutMessage, account: TwilioAccount, began_at: datetime
    ) -> list[SentMessage]:
        """The messages to this recipient since shortly before `began_at`, the newest first.

        Raises:
            LookUpFailed: the provider did not say, or there are more than 250.
        """
        path = f".json?To={quote(message.content.to, safe='')}&PageSize={_PAGE}"
        since = began_at - _SKEW
        found: list[SentMessage] = []
        for _ in range(_MAX_PAGES):
            page = await self._get(account, path)
            for one in page.get("messages") or []:
                sent = _read_sent(one, message)
                if sent is not None and sent.created_at < since:
                    return found
                if sent is not None:
                    found.append(sent)
            next_page = page.get("next_page_uri")
            if not isinstance(next_page, str) or not next_page:
                return found
            path = next_page
        raise LookUpFailed("too many messages to one recipient")

    async def _get(self, account: TwilioAccount, path: str) -> dict[str, Any]:
        try:
            status, _, body = await self._ask("GET", account, path)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as failure:
            raise LookUpFailed(f"no answer: {_kind(failure)}") from None
        document = _read(body)
        if status != 200 or document is None:  # noqa: PLR2004 - HTTP's OK
            raise LookUpFailed(f"the provider answered {status}")
        return document

    async def _ask(
        self,
        method: str,
        account: TwilioAccount,
        path: str,
        form: Mapping[str, str] | None = None,
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and the beginning of the body; bounded in time and size."""
        url = account.messages_url + path
        if path.startswith("/2010"):
            # The next page: a path of this server, whatever the answer says.
            url = urljoin(account.base_url, path)
        auth = httpx.BasicAuth(account.sid, account.token.get_secret_value())
        async with (
            asyncio.timeout(self._timeout_s),
            self._http.stream(method, url, auth=auth, timeout=self._timeout_s, data=form) as answer,
        ):
            body = bytearray()
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    break
            return answer.status_code, answer.headers, bytes(body[:MAX_ANSWER_BYTES])


def judge(status: int, headers: httpx.Headers, body: bytes, *, now: datetime) -> Receipt:
    """The result of an attempt that the provider answered."""
    document = _read(body) or {}
    code = document.get("code")
    known = f"TWILIO_{code}" if isinstance(code, int) else f"HTTP_{status}"
    reason = f"the provider answered {status}" + (f", error {code}" if known[0] == "T" else "")
    wait_s = parse_retry_after(headers.get("retry-after"), now=now)
    wait_s = None if wait_s is None else min(wait_s, _LONGEST_WAIT_S)
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's classes
        if not isinstance(document.get("sid"), str):
            return Receipt("unknown", "ANSWER_UNREADABLE", reason, status)
        return _receipt_of(document, status)
    if status in _UNSURE_STATUSES:
        return Receipt("unknown", known, reason, status)
    if status in _BUSY_STATUSES or code in _NOT_THE_MESSAGES:
        wait_s = wait_s if status == 429 else max(wait_s or 0.0, _OWN_FAULT_WAIT_S)  # noqa: PLR2004 - too many requests
        return Receipt("busy", known, reason, status, retry_after_s=wait_s)
    if 400 <= status < 500 and known[0] == "T":  # noqa: PLR2004 - HTTP's classes
        return Receipt("refused", known, reason, status)
    return Receipt("failed", known, reason, status, retry_after_s=wait_s)


def _receipt_of(document: dict[str, Any], status_code: int | None = None) -> Receipt:
    """What a message resource says."""
    provider_id, status = document.get("sid"), document.get("status")
    if status in _ARRIVED:
        return Receipt("delivered", status_code=status_code, provider_id=provider_id)
    if status in _GIVEN_UP:
        code = document.get("error_code")
        known = f"TWILIO_{code}" if isinstance(code, int) else f"TWILIO_{str(status).upper()}"
        reason = f"the provider says {status}"
        return Receipt("refused", known, reason, status_code, provider_id)
    return Receipt("sent", status_code=status_code, provider_id=provider_id)


def _read_sent(one: Any, message: OutMessage) -> SentMessage | None:  # noqa: ANN401 - any JSON
    """A message of a list; None for what is none, and for messages that were received."""
    try:
        provider_id, text = str(one["sid"]), str(one["body"])
        created_at = parsedate_to_datetime(one["date_created"])
        is_ours = str(one.get("direction", "")).startswith("outbound")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if not is_ours:
        return None
    text = text.removeprefix(_TRIAL_PREFIX)
    if created_at.tzinfo is None:
        created_at = created_at.replace(tzinfo=UTC)
    return SentMessage(provider_id, _receipt_of(one), created_at, text == message.content.body)


def _read(body: bytes) -> dict[str, Any] | None:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _kind(failure: BaseException) -> str:
    return type(failure).__name__


__all__ = ["LookUpFailed", "SentMessage", "TwilioAccount", "TwilioClient", "judge"]
