"""Only an answer that says so means that there is no message."""

import orjson
import pytest

from functions.presence.horizon import read_answer
from runtime import Unavailable


@pytest.mark.parametrize("err_code", [10014, 10037, 10059])
def test_what_is_not_found_is_not_there(err_code: int) -> None:
    assert read_answer(orjson.dumps({"error": {"code": 404, "err_code": err_code}})) is None


@pytest.mark.parametrize(("code", "err_code"), [(503, 10008), (500, 10049), (400, 10003)])
def test_any_other_error_says_nothing_of_messages(code: int, err_code: int) -> None:
    answer = {"error": {"code": code, "err_code": err_code, "description": "no leader " * 100}}
    with pytest.raises(Unavailable) as raised:
        read_answer(orjson.dumps(answer))
    assert len(str(raised.value)) < 300


def test_an_answer_is_taken_as_it_is() -> None:
    assert read_answer(b'{"num_pending": 3}') == {"num_pending": 3}
