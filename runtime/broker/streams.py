"""Compares the server's streams and consumers with the manifest, and applies the differences."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from runtime.broker.connection import ApiError, Broker
from runtime.broker.drift import Change, drift, merged
from runtime.broker.manifest_places import is_declared, problem_of_change, problem_of_error
from runtime.broker.stream_configs import Wanted, wanted_by_manifest, wanted_by_runtime
from runtime.errors import ConfigError, Problem, Unavailable
from runtime.manifest.model import Manifest

log = logging.getLogger("runtime.broker")

ROUNDS = 5
"""How often the server is read again when other hosts change it at the same time."""
PAUSE_S = 0.1
PATIENCE = 3
"""How often JetStream may leave a request unanswered before it counts as unavailable."""

_STREAM_NOT_FOUND = 10059
_NOT_FOUND = {_STREAM_NOT_FOUND, 10014}
_RACES = {10013, 10014, 10058, 10059, 10105, 10148, 10149}
"""Error codes of a create or update that lost a race against another client."""
_NO_STORE = 10049
"""Error code for a stream of that name that was deleted a moment ago and whose files are still
being removed; or whose files cannot be written."""

_REMEDIES = {
    10047: "lower max_bytes or give the server more room (jetstream max_file_store)",
    10059: "declare the stream under `streams:` in a manifest, or create it",
    10065: "use each subject in one stream only; `nats stream ls` shows the other streams",
    10005: "set replicas to at most the number of the cluster's nodes",
    10074: "set replicas to 1, or connect to a cluster",
    10099: "give each consumer of a work queue filter_subjects that overlap with no other's",
    10100: "give each consumer of a work queue filter_subjects that overlap with no other's",
    10101: "leave `deliver` out: a work queue's consumer gets all messages",
    10138: "let no filter of one consumer overlap with another",
}
_BIND_ONLY_REMEDY = "have it made by `runtime apply MANIFESTS`, or serve without --bind-only"
_NEEDED_TO_PULL = {"ack_policy", "deliver_subject"}
_Survey = list[tuple[Wanted, Mapping[str, Any] | None, list[Change]]]


async def plan(broker: Broker, manifest: Manifest) -> list[Change]:
    """List what `ensure` would change or refuse; change nothing.

    Raises:
        ConfigError: the manifest contradicts itself.
        Unavailable: JetStream does not answer.
    """
    survey = await _survey(broker, wanted_objects(broker, manifest))
    return [change for _, _, changes in survey for change in changes]


async def ensure(broker: Broker, manifest: Manifest, *, allow_loss: bool = False) -> list[Change]:
    """Create missing objects and update differing ones in place; return the changes made.

    Safe to run again, and by several hosts at once. Nothing is changed unless every change keeps
    all messages.

    Args:
        broker: the connection.
        manifest: the wanted streams and consumers.
        allow_loss: also make changes that drop messages.

    Raises:
        ConfigError: lists every field that JetStream cannot change, every change that would drop
            messages, and every change that the server refused.
        Unavailable: JetStream does not answer.
    """
    wanted = wanted_objects(broker, manifest)
    return await _apply_all(broker, manifest, wanted, allow_loss=allow_loss)


async def inspect(broker: Broker, manifest: Manifest) -> list[Change]:
    """The differences that do not stop a host that may only bind; nothing is changed.

    Raises:
        ConfigError: a stream or consumer is missing, or a consumer is not one that a function can
            pull from.
        Unavailable: JetStream does not answer.
    """
    changes = await plan(broker, manifest)
    problems = [
        Problem(change.object, "", "is missing, and only binding is allowed", _BIND_ONLY_REMEDY)
        if change.kind == "create"
        else _refusal(manifest, change)
        for change in changes
        if change.kind == "create" or change.field in _NEEDED_TO_PULL
    ]
    if problems:
        raise ConfigError(problems)
    return changes


async def ensure_runtime_streams(broker: Broker) -> list[Change]:
    """As `ensure`, for the runtime's own streams: dead letters, mailbox, advisories.

    Raises:
        ConfigError: one of them exists with other subjects, or the server refused it.
        Unavailable: JetStream does not answer.
    """
    return await _apply_all(broker, Manifest(), wanted_by_runtime(broker.server_version))


def wanted_objects(broker: Broker, manifest: Manifest) -> list[Wanted]:
    """The objects that the server must have for a manifest: streams first, the runtime's included.

    Raises:
        ConfigError: the manifest contradicts itself.
    """
    own = _as_safe_as_the_rest(wanted_by_runtime(broker.server_version, manifest.streams), manifest)
    every = own + wanted_by_manifest(manifest)
    return sorted(every, key=lambda wanted: bool(wanted.consumer))


async def find_drift(broker: Broker, wanted: Wanted) -> list[Change]:
    """How one object differs now, with one request; which changes lose messages is an estimate.

    Raises:
        ApiError: JetStream refused the request.
        Unavailable: JetStream does not answer.
    """
    found, state = await _fetch(broker, wanted)
    return drift(wanted, found, state)


def _as_safe_as_the_rest(own: Sequence[Wanted], manifest: Manifest) -> list[Wanted]:
    """The runtime's own streams with as many replicas as the manifest's most replicated stream.

    The number of replicas is never lowered: other hosts may serve other manifests.
    """
    replicas = max((spec.replicas for spec in manifest.streams.values()), default=1)
    return [
        replace(
            wanted,
            config={**wanted.config, "num_replicas": replicas},
            compared=wanted.compared | {"num_replicas"},
        )
        if replicas > 1 and not wanted.consumer and wanted.stream not in manifest.streams
        else wanted
        for wanted in own
    ]


async def _apply_all(
    broker: Broker, manifest: Manifest, wanted: Sequence[Wanted], *, allow_loss: bool = False
) -> list[Change]:
    made: list[Change] = []
    unanswered = 0
    for number in range(ROUNDS):
        await asyncio.sleep(PAUSE_S * number)
        try:
            survey = await _survey(broker, wanted)
            changes = [change for _, _, found in survey for change in found]
            if not changes:
                return made
            _refuse(manifest, changes, allow_loss=allow_loss)
            await _apply(broker, manifest, survey, made, is_last=number == ROUNDS - 1)
        except Unavailable:
            # In a cluster an object that another host has just created does not answer until its
            # leader is elected.
            unanswered += 1
            if unanswered == PATIENCE:
                raise
    raise Unavailable(
        "JetStream", "other hosts keep changing the same streams; do they run other manifests?"
    )


async def _survey(broker: Broker, wanted: Iterable[Wanted]) -> _Survey:
    return await asyncio.gather(*(_compare(broker, each) for each in wanted))


async def _compare(
    broker: Broker, wanted: Wanted
) -> tuple[Wanted, Mapping[str, Any] | None, list[Change]]:
    found, state = await _fetch(broker, wanted)
    changes = drift(wanted, found, state)
    if any(change.field == "max_msgs_per_subject" for change in changes):
        state["most_per_subject"] = await _most_per_subject(broker, wanted.stream)
        changes = drift(wanted, found, state)
    return wanted, found, changes


async def _fetch(broker: Broker, wanted: Wanted) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """An object's configuration, None when the object is missing, and a stream's state."""
    try:
        if wanted.consumer:
            answer = await _ask(broker, f"CONSUMER.INFO.{wanted.stream}.{wanted.consumer}")
        else:
            answer = await _ask(broker, f"STREAM.INFO.{wanted.stream}")
    except ApiError as error:
        if error.err_code in _NOT_FOUND:
            return None, {}
        raise
    return answer["config"], answer.get("state", {})


async def _most_per_subject(broker: Broker, stream: str) -> int:
    """The largest number of messages of one subject. A page of the answer has 100,000 subjects."""
    most, offset = 0, 0
    while True:
        answer = await _ask(
            broker, f"STREAM.INFO.{stream}", {"subjects_filter": ">", "offset": offset}
        )
        counts: dict[str, int] = answer["state"].get("subjects") or {}
        most = max([most, *counts.values()])
        offset += len(counts)
        if not counts or offset >= answer["state"].get("num_subjects", 0):
            return most


async def _apply(
    broker: Broker, manifest: Manifest, survey: _Survey, made: list[Change], *, is_last: bool
) -> None:
    """Apply the changes that the survey found, and add them to `made`."""
    refused: list[tuple[Wanted, ApiError]] = []
    for wanted, found, changes in survey:
        if not changes:
            continue
        try:
            await _write(broker, wanted, found)
        except ApiError as error:
            if error.err_code == _NO_STORE and not is_last:
                log.debug("%s cannot be stored yet", wanted.name)
                continue
            if _lost_a_race(error, wanted, survey):
                log.debug("%s was changed by another host meanwhile", wanted.name)
                continue
            refused.append((wanted, error))
        else:
            made += changes
    if refused:
        raise ConfigError(list(_explain_refused(manifest, refused)))


def _explain_refused(
    manifest: Manifest, refused: Sequence[tuple[Wanted, ApiError]]
) -> Iterator[Problem]:
    """The problems that the server reported for declared objects, or else for all objects.

    The host's own streams take their replicas from the manifest's streams: too many replicas are
    one mistake, in the manifest.
    """
    told = {error.err_code for wanted, error in refused if is_declared(manifest, wanted)}
    for wanted, error in refused:
        if error.err_code in told and not is_declared(manifest, wanted):
            continue
        remedy = _REMEDIES.get(error.err_code, "change the manifest or the server's limits")
        yield problem_of_error(manifest, wanted, error.err_code, error.description, remedy)


async def _write(broker: Broker, wanted: Wanted, found: Mapping[str, Any] | None) -> None:
    config = dict(wanted.config) if found is None else merged(wanted, found)
    verb = "CREATE" if found is None else "UPDATE"
    if not wanted.consumer:
        await _ask(broker, f"STREAM.{verb}.{wanted.stream}", config)
        return
    # One API subject creates and updates a consumer; `action` tells them apart since 2.10.
    payload = {"stream_name": wanted.stream, "config": config, "action": verb.lower()}
    await _ask(broker, f"CONSUMER.CREATE.{wanted.stream}.{wanted.consumer}", payload)


async def _ask(
    broker: Broker, subject: str, payload: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    try:
        return await broker.api(subject, payload)
    except ApiError as error:
        if error.code == 503:  # noqa: PLR2004 - HTTP's own number
            raise Unavailable("JetStream", error.description) from error
        raise


def _lost_a_race(error: ApiError, wanted: Wanted, survey: _Survey) -> bool:
    if error.err_code == _STREAM_NOT_FOUND and wanted.consumer:
        return any(each.stream == wanted.stream and not each.consumer for each, _, _ in survey)
    return error.err_code in _RACES


def _refuse(manifest: Manifest, changes: Iterable[Change], *, allow_loss: bool) -> None:
    refused = ("immutable",) if allow_loss else ("immutable", "destructive")
    problems = [_refusal(manifest, change) for change in changes if change.kind in refused]
    if problems:
        raise ConfigError(problems)


def _refusal(manifest: Manifest, change: Change) -> Problem:
    consequence = (
        "which JetStream cannot change in place"
        if change.kind == "immutable"
        else "which would drop messages or no longer store them"
    )
    wrong = (
        f"is {change.found!r} on the server and {change.wanted!r} in the manifest, {consequence}"
    )
    return problem_of_change(manifest, change, wrong, way_out(change))


def way_out(change: Change) -> str:
    """The remedy, for a person, for a change that is not made in place."""
    name = change.object.split()[1]
    if change.object.startswith("consumer") and change.kind == "immutable":
        return (
            "write what the server has, give the function another durable, or remove the consumer "
            f"with its position: nats consumer rm {name.replace('/', ' ')}"
        )
    if change.kind == "immutable":
        return (
            "write what the server has, or back the stream up and create it anew: "
            f"nats stream backup {name} DIRECTORY, then nats stream rm {name}"
        )
    return (
        "write what the server has, or, if those messages may go: "
        "runtime apply MANIFESTS --allow-loss"
    )
