"""Error responses have a code, and hold no internals."""

import json

import pytest

from functions.http_gateway.forwarding import explain_absence, explain_failure
from functions.http_gateway.problems import ProblemError
from runtime import RequestFailed, Unavailable


def test_a_problem_has_the_members_of_rfc_9457() -> None:
    response = ProblemError(404, "NO_SUCH_DEVICE", "There is none.").response(
        instance="/devices/x", request_id="r1"
    )
    assert response.media_type == "application/problem+json"
    assert json.loads(bytes(response.body)) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "There is none.",
        "code": "NO_SUCH_DEVICE",
        "event_id": "r1",
        "instance": "/devices/x",
    }


@pytest.mark.parametrize("status", [429, 503])
def test_an_error_that_may_be_repeated_has_retry_after(status: int) -> None:
    assert ProblemError(status, "X", "x").headers["Retry-After"] == "1"


def test_an_endpoints_code_and_detail_reach_the_caller() -> None:
    body = json.dumps({"code": "CONFLICT_VERSION", "detail": "It is 7.", "event_id": "e1"}).encode()
    problem = explain_failure(RequestFailed("s", 409, "CONFLICT_VERSION", body))
    assert (problem.status, problem.code, problem.detail, problem.event_id) == (
        409,
        "CONFLICT_VERSION",
        "It is 7.",
        "e1",
    )


def test_a_busy_endpoint_says_when_to_come_back() -> None:
    problem = explain_failure(RequestFailed("s", 429, "TOO_MANY_REQUESTS"))
    assert problem.headers["Retry-After"] == "1"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"code": 7}', b"\xff", b'{"detail": "x"}'])
def test_the_exception_text_of_a_foreign_endpoint_stays_inside(body: bytes) -> None:
    problem = explain_failure(RequestFailed("s", 500, "OperationalError('password=hunter2')", body))
    assert problem.status == 500
    assert "hunter2" not in problem.detail
    assert problem.code == "INTERNAL_SERVER_ERROR"


@pytest.mark.parametrize("code", [0, 99, 200, 302, 600, 99999])
def test_a_code_that_is_no_error_of_http_is_a_bad_gateway(code: int) -> None:
    assert explain_failure(RequestFailed("s", code, "?")).status == 502


def test_a_code_that_http_does_not_name_is_passed_on() -> None:
    assert explain_failure(RequestFailed("s", 499, "gone")).status == 499


def test_no_reply_is_a_timeout_and_no_responder_is_unavailable() -> None:
    assert explain_absence(Unavailable("s", "timeout")).status == 504
    assert explain_absence(Unavailable("s", "no responders")).status == 503
    assert explain_absence(Unavailable("s", "ConnectionClosedError")).status == 503
