"""Formats what a call of `runtime invoke` did, for a person and for a script."""

import base64
from typing import Any

from runtime.cli.printing import count, printable, show_span
from runtime.cli.remote_call import RemoteResult
from runtime.local.local_call import LocalResult, Settling
from runtime.local.recorded_effects import Sent
from runtime.message import Message
from runtime.observe.redaction import mask
from runtime.user_frames import format_traceback

_SHOWN_CHARACTERS = 2_000


def has_failed(result: LocalResult) -> bool:
    """Whether the function failed, in whole or for one of its messages."""
    return result.failure is not None or any(each.action != "ack" for each in result.settled)


def draw(result: LocalResult, *, live: bool) -> str:
    """What a call in this process did, as text."""
    sections = [_headline(result)]
    if result.reply is not None:
        sections.append(_section("Reply", _payload(result.reply)))
    if result.sent:
        title = "Sent" if live else "Would have sent (--live sends)"
        sections.append(_section(title, "\n".join(map(_draw_sent, result.sent))))
    if result.logs:
        sections.append(_section("Log", "\n".join(printable(str(line)) for line in result.logs)))
    if result.failure is not None and _is_unexpected(result):
        trace = printable(mask(format_traceback(result.failure)).rstrip(), keep="\n")
        sections.append(_section("Traceback", trace))
    return "\n".join(sections)


def _headline(result: LocalResult) -> str:
    took = _show_ms(result.elapsed_s)
    if result.error is not None:
        status, code = result.error
        return f"error {status} {printable(code)}, {took}{_at(result.where)}"
    if not result.settled:
        return f"answered, {took}"
    if len(result.settled) == 1:
        return f"{printable(str(result.settled[0]))}, {took}"
    lines = [
        f"{number}: {printable(str(each))}" for number, each in enumerate(result.settled, start=1)
    ]
    return "\n".join([f"{count(len(lines), 'message')} in one call, {took}", *lines])


def _at(where: str) -> str:
    return f", at {where}" if where else ""


def _is_unexpected(result: LocalResult) -> bool:
    """Whether the failure is another exception than those that functions steer with."""
    kinds = {each.error_type for each in result.settled}
    if result.error is not None:
        return result.error[0] >= 500  # noqa: PLR2004 - HTTP's own failures
    return not kinds <= {"", "Retry", "Reject", "PayloadError"}


def _draw_sent(sent: Sent) -> str:
    verb = {"publish": "publish", "publish_core": "publish, unconfirmed"}.get(sent.kind, sent.kind)
    facts = [f"{verb} {printable(sent.subject)}", f"{len(sent.data):,} bytes"]
    if sent.msg_id:
        facts.append(f"id {printable(sent.msg_id)}")
    if sent.duplicate:
        facts.append("a duplicate")
    lines = [", ".join(facts)]
    lines += [f"  {printable(name)}: {printable(value)}" for name, value in sent.headers.items()]
    if sent.data:
        lines += [f"  {line}" for line in _payload(sent.data).split("\n")]
    return "\n".join(lines)


def _payload(data: bytes) -> str:
    try:
        text = printable(data.decode("utf-8"), keep="\n\t")
    except UnicodeDecodeError:
        return f"{len(data):,} bytes that are not text; --json has them"
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}… {len(data):,} bytes in all; --json has them"


def _section(title: str, text: str) -> str:
    return "\n".join([title, *(f"  {line}" for line in text.split("\n"))])


def _show_ms(elapsed_s: float) -> str:
    return f"{elapsed_s * 1000:,.1f} ms"


def describe(result: LocalResult, *, live: bool) -> dict[str, Any]:
    """What a call in this process did, as a JSON object."""
    return {
        "failed": has_failed(result),
        "live": live,
        "elapsed_ms": round(result.elapsed_s * 1000, 3),
        "settled": [
            _describe_settling(message, each)
            for message, each in zip(result.messages, result.settled, strict=False)
        ],
        "reply": _describe_payload(result.reply) if result.reply is not None else None,
        "error": _describe_error(result.error),
        "error_type": type(result.failure).__name__ if result.failure else "",
        "where": result.where,
        "sent": [
            {
                "kind": each.kind,
                "subject": each.subject,
                "headers": dict(each.headers),
                "msg_id": each.msg_id,
                "duplicate": each.duplicate,
                **_describe_payload(each.data),
            }
            for each in result.sent
        ],
        "logs": [
            {"level": line.level, "event": line.text, **{k: str(v) for k, v in line.fields.items()}}
            for line in result.logs
        ],
    }


def _describe_settling(message: Message, settling: Settling) -> dict[str, Any]:
    return {
        "subject": message.subject,
        "sequence": message.sequence,
        "action": settling.action,
        "delay_s": settling.delay_s,
        "code": settling.code,
        "reason": settling.reason,
        "where": settling.where,
    }


def _describe_payload(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def _describe_error(error: tuple[int, str] | None) -> dict[str, Any] | None:
    return {"status": error[0], "code": error[1]} if error else None


def draw_remote(name: str, result: RemoteResult) -> str:
    """What a running host did, as text."""
    took = _show_ms(result.elapsed_s)
    if result.reply is not None:
        status = f"error {result.error[0]} {printable(result.error[1])}" if result.error else ""
        return "\n".join(
            [f"{status or 'answered'}, {took}", _section("Reply", _payload(result.reply))]
        )
    if result.letter is not None:
        letter = result.letter
        reason = printable(f"{letter.code}: {letter.reason}")
        return f"dead letter {letter.sequence}, {reason}, {took}; `runtime dlq show` has more"
    if result.parked is not None:
        reason = printable(result.parked.reason)
        return f"parked until {result.parked.due_at:%H:%M:%SZ}, {reason}, {took}"
    if result.is_waiting:
        return (
            f"no outcome within {show_span(result.elapsed_s)}: the message stays in the mailbox of "
            f"{name} until a host has settled it"
        )
    return f"done, {took}"


def describe_remote(result: RemoteResult) -> dict[str, Any]:
    """What a running host did, as a JSON object."""
    letter, parked = result.letter, result.parked
    return {
        "failed": not result.is_done,
        "elapsed_ms": round(result.elapsed_s * 1000, 3),
        "reply": _describe_payload(result.reply) if result.reply is not None else None,
        "error": _describe_error(result.error),
        "dead_letter": letter.sequence if letter else None,
        "code": letter.code if letter else "",
        "reason": letter.reason if letter else parked.reason if parked else "",
        "parked_until": parked.due_at if parked else None,
        "waiting": result.is_waiting,
    }
