"""Formats dead letters for a person and for a script."""

import base64
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from runtime.broker.dead_letters import DeadLetter
from runtime.cli.printing import align, count, printable, show_span, show_time
from runtime.cli.table import Column, print_table

HEX_LIMIT_BYTES = 4096
"""The most bytes of a binary payload that are shown; `--raw` prints all."""

_LINK = "runtime-"
_WIDTH = 16
_UNSHOWN = re.compile(rb"[^ -~]")


_COLUMNS = (
    Column("SEQ", is_number=True),
    Column("AGE", is_number=True, in_pipe=False),
    Column("FAILED AT", priority=4),
    Column("FUNCTION", least=16, is_name=True),
    Column("CODE", least=16),
    Column("ATTEMPTS", priority=2, is_number=True),
    Column("SUBJECT", priority=3, least=16),
    Column("REASON", priority=1, least=32),
)


def draw_table(letters: Iterable[DeadLetter]) -> None:
    """Print one line for each dead letter."""
    now = datetime.now(UTC)
    print_table(
        _COLUMNS,
        [
            (
                str(letter.sequence),
                show_span((now - letter.failed_at).total_seconds()),
                show_time(letter.failed_at),
                printable(letter.function),
                printable(letter.code),
                str(letter.attempts),
                printable(letter.message.subject),
                printable(letter.reason),
            )
            for letter in letters
        ],
    )


def describe(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as a JSON object, without headers, traceback and payload."""
    message = letter.message
    return {
        "sequence": letter.sequence,
        "failed_at": letter.failed_at,
        "function": letter.function,
        "code": letter.code,
        "reason": letter.reason,
        "error_type": letter.error_type,
        "attempts": letter.attempts,
        "stream": message.stream,
        "stream_sequence": message.sequence,
        "subject": message.subject,
        "stored_at": _stored_at(letter),
        "size_bytes": len(message.data),
        "redrives": letter.redrives,
        "first_dead_letter": letter.first_dead_letter,
        "first_failed_at": letter.first_failure.failed_at,
        "first_code": letter.first_failure.code,
        "first_reason": letter.first_failure.reason,
    }


def describe_whole(letter: DeadLetter) -> dict[str, Any]:
    """A complete dead letter as a JSON object. The payload is `text` when UTF-8, else `base64`."""
    data = letter.message.data
    try:
        payload = {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        payload = {"base64": base64.b64encode(data).decode("ascii")}
    unreadable = letter.message.unreadable
    if unreadable is not None and unreadable.header_block:
        payload["header_block_base64"] = base64.b64encode(unreadable.header_block).decode("ascii")
    return {
        **describe(letter),
        "headers": dict(letter.message.headers),
        "traceback": letter.traceback,
        **payload,
    }


def draw(letter: DeadLetter) -> str:
    """A complete dead letter as text for a person."""
    message = letter.message
    age = show_span((datetime.now(UTC) - letter.failed_at).total_seconds())
    facts = [
        ("function", letter.function),
        ("code", letter.code),
        ("reason", letter.reason),
        ("error", letter.error_type),
        ("attempts", str(letter.attempts)),
        ("failed at", f"{show_time(letter.failed_at)}, {age} ago"),
        ("message", f"{message.stream}/{message.sequence}"),
        ("subject", message.subject),
        ("stored at", show_time(_stored_at(letter))),
    ]
    if letter.redrives:
        first = letter.first_failure
        facts.append(("redriven", count(letter.redrives, "time")))
        failure = f"{first.code}: {first.reason}" if first.reason else first.code
        at = show_time(first.failed_at)
        facts.append(("at first", f"dead letter {first.sequence}, {at}, {failure}"))
    sections = [f"Dead letter {letter.sequence}", _indented(align(_clean(facts)))]
    headers = [
        item for item in sorted(message.headers.items()) if not item[0].lower().startswith(_LINK)
    ]
    if headers:
        sections += ["Headers", _indented(align(_clean(headers)))]
    if message.unreadable is not None and (block := message.unreadable.header_block):
        sections += [f"Header block, {len(block):,} bytes", _indented(_draw_hex(block))]
    if letter.traceback:
        sections += ["Traceback", _indented(printable(letter.traceback.rstrip(), keep="\n"))]
    sections += [f"Payload, {len(message.data):,} bytes", _indented(_draw_payload(message.data))]
    return "\n".join(sections)


def _clean(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(printable(name), printable(value)) for name, value in pairs if value]


def _stored_at(letter: DeadLetter) -> datetime:
    return datetime.fromtimestamp(letter.message.stored_at_ns // 1000 / 1e6, tz=UTC)


def _draw_payload(data: bytes) -> str:
    try:
        return printable(data.decode("utf-8"), keep="\n\t")
    except UnicodeDecodeError:
        return _draw_hex(data)


def _draw_hex(data: bytes) -> str:
    lines = []
    for start in range(0, min(len(data), HEX_LIMIT_BYTES), _WIDTH):
        row = data[start : start + _WIDTH]
        text = _UNSHOWN.sub(b".", row).decode("ascii")
        lines.append(f"{start:08x}  {row.hex(' '):<{3 * _WIDTH - 1}}  {text}")
    if len(data) > HEX_LIMIT_BYTES:
        lines.append(f"and {len(data) - HEX_LIMIT_BYTES:,} bytes more: --raw gives all")
    return "\n".join(lines)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
