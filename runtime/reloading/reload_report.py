"""Says on the terminal, or in the log, what a reload did."""

from collections.abc import Iterable, Sequence
from typing import Any

from runtime.deployments.function_change import STREAM, Action, FunctionChange
from runtime.loader.candidate import MANIFESTS
from runtime.observe.logs import get_logger, is_for_a_person

log = get_logger("runtime.reload")

MOST_LINES = 4
"""So many functions have a line each; of more that fared alike, one line says how many."""
_SHOWN_NAMES = 3
_SHOWN_DIGITS = 8
_SENTENCES: dict[Action, str] = {
    "swapped": "Swapped",
    "rebound": "Bound again",
    "started": "Started",
    "stopped": "Stopped",
    "mended": "Mended, the version that runs is on disk again",
}


def report(changes: Iterable[FunctionChange]) -> None:
    """Log the changes: one line for each function, and one for many that fared alike."""
    by_action: dict[Action, list[FunctionChange]] = {}
    for change in changes:
        by_action.setdefault(change.action, []).append(change)
    failed = by_action.pop("failed", [])
    for action, alike in by_action.items():
        if len(alike) > MOST_LINES:
            slowest = max(change.elapsed_ms for change in alike)
            log.info(_SENTENCES[action], functions=_names(alike), ms=round(slowest))
            continue
        for change in alike:
            is_entry = action == "mended" and not change.to_version
            sentence = "Mended" if is_entry else _SENTENCES[action]
            log.info(sentence, function=change.name, **_versions(change))
    for alike in _by_error(failed):
        _report_failure(alike)


def _report_failure(alike: Sequence[FunctionChange]) -> None:
    error = alike[0].error
    if error is None:
        return
    whose = {"function": alike[0].name} if len(alike) == 1 else {"functions": _names(alike)}
    more: dict[str, Any] = {"excerpt": error.excerpt} if error.excerpt else {}
    log.error(
        f"Not reloaded, {_what_runs(alike[0])}",  # noqa: G004 - one of four constant sentences
        **whose,
        where=error.where,
        wrong=error.wrong,
        remedy=error.remedy,
        **more,
    )


def _what_runs(change: FunctionChange) -> str:
    if change.to_version:
        return "the last good version runs on"
    if change.name == MANIFESTS:
        return "the last good manifests are in use"
    return "it stays as it is" if change.name.startswith(STREAM) else "it does not run"


def _by_error(failed: Iterable[FunctionChange]) -> list[list[FunctionChange]]:
    """Failed functions by their cause: a mistake in a shared module is one mistake."""
    groups: dict[object, list[FunctionChange]] = {}
    for change in failed:
        groups.setdefault((change.error, bool(change.to_version)), []).append(change)
    return list(groups.values())


def _versions(change: FunctionChange) -> dict[str, object]:
    digits = _SHOWN_DIGITS if is_for_a_person() else None
    fields: dict[str, object] = {}
    if change.from_version:
        fields["from"] = change.from_version[:digits]
    if change.to_version:
        fields["to"] = change.to_version[:digits]
    return {**fields, "ms": round(change.elapsed_ms)}


def _names(changes: Sequence[FunctionChange]) -> str:
    names = [change.name for change in changes]
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


__all__ = ["report"]
