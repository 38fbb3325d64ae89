"""A stand-in for Twilio's REST API on a free loopback port: accounts, messages, errors, pages."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from tests.support.receiver import Answer, Received, Receiver

SID = "AC" + "0" * 32
TOKEN = "the token of the account"


@dataclass
class Stored:
    """A message that the provider has accepted."""

    sid: str
    to: str
    sender: str
    body: str
    created_at: datetime
    status: str = "queued"
    error_code: int | None = None
    direction: str = "outbound-api"

    def document(self) -> dict[str, Any]:
        return {
            "sid": self.sid,
            "account_sid": SID,
            "to": self.to,
            "from": self.sender,
            "body": self.body,
            "status": self.status,
            "error_code": self.error_code,
            "error_message": None,
            "direction": self.direction,
            "date_created": format_datetime(self.created_at),
            "date_sent": None,
            "uri": f"/2010-04-01/Accounts/{SID}/Messages/{self.sid}.json",
        }


def error(status: int, code: int, **headers: str) -> Answer:
    """An error as the API writes it."""
    document = {
        "code": code,
        "message": "a sentence",
        "more_info": f"https://www.twilio.com/docs/errors/{code}",
        "status": status,
    }
    return Answer(status, headers, orjson.dumps(document))


class Twilio(Receiver):
    """Accepts messages as the API does.

    Attributes:
        stored: the accepted messages, the oldest first.
        refusals: answers to the next attempts to send, which accept nothing.
        lost: answers to the next attempts, sent instead of the usual one after the message was
            accepted.
        accepted: called with each accepted message.
        page_size: most messages of a page.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[Stored] = []
        self.refusals: list[Answer] = []
        self.lost: list[Answer] = []
        self.accepted: Callable[[Stored], None] = lambda _: None
        self.page_size = 50

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def posts(self) -> list[Received]:
        """The attempts to send."""
        return [one for one in self.requests if one.method == "POST"]

    def add(self, to: str, body: str, *, age_s: float = 0.0, **fields: Any) -> Stored:
        """A message that the provider has."""
        sid = f"SM{len(self.stored):032x}"
        created_at = datetime.now(UTC) - timedelta(seconds=age_s)
        one = Stored(sid, to, "+15005550006", body, created_at, **fields)
        self.stored.append(one)
        return one

    def answer_to(self, request: Received) -> Answer:
        expected = base64.b64encode(f"{SID}:{TOKEN}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {expected}":
            return error(401, 20003)
        url = urlsplit(request.path)
        base = f"/2010-04-01/Accounts/{SID}/Messages"
        if request.method == "POST" and url.path == f"{base}.json":
            return self._create(request)
        if url.path == f"{base}.json":
            return self._list(url.path, parse_qs(url.query))
        for one in self.stored:
            if url.path == f"{base}/{one.sid}.json":
                return _json(200, one.document())
        return error(404, 20404)

    def _create(self, request: Received) -> Answer:
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        form = {name: each[0] for name, each in parse_qs(request.body.decode()).items()}
        if self.refusals:
            return self.refusals.pop(0)
        if "From" not in form and "MessagingServiceSid" not in form:
            return error(400, 21603)
        if not form["To"].startswith("+"):
            return error(400, 21211)
        one = self.add(form["To"], form["Body"])
        self.accepted(one)
        return self.lost.pop(0) if self.lost else _json(201, one.document())

    def _list(self, path: str, query: dict[str, list[str]]) -> Answer:
        wanted = [one for one in reversed(self.stored) if one.to == query["To"][0]]
        size = min(int(query["PageSize"][0]), self.page_size)
        page = int(query.get("Page", ["0"])[0])
        shown = wanted[page * size : (page + 1) * size]
        next_page = None
        if len(wanted) > (page + 1) * size:
            to = query["To"][0].replace("+", "%2B")
            next_page = f"{path}?To={to}&PageSize={size}&Page={page + 1}"
        document = {"messages": [one.document() for one in shown], "next_page_uri": next_page}
        return _json(200, document)


def _json(status: int, document: dict[str, Any]) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, orjson.dumps(document))
