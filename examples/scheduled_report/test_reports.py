from datetime import date

from reports import draw


def test_a_report_has_a_line_of_json_for_each_page_and_day() -> None:
    rows = [
        {"day": date(2026, 1, 1), "page": "/help", "visits": 1},
        {"day": date(2026, 1, 1), "page": "/start", "visits": 2},
    ]

    assert draw(rows).splitlines() == [
        b'{"day":"2026-01-01","page":"/help","visits":1}',
        b'{"day":"2026-01-01","page":"/start","visits":2}',
    ]


def test_a_report_without_visits_is_empty() -> None:
    assert draw([]) == b""
