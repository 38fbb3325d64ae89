"""The settling table of the delivery contract: behaviours of a function, and their settlements.

`docs/what-happens-when.md` has a paragraph for each row. A row holds for every kind of function
unless it names its kinds, with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.contract.kinds import KINDS, Kind, named
from tests.contract.plays import (
    CRASH,
    HANG,
    NOT_CALLED,
    NOT_DELIVERED,
    RETURN,
    Outlast,
    OutlastGrace,
    Play,
    ReturnWhileDraining,
    raises,
    raises_by,
    rejects,
    retries,
)
from tests.contract.refusal import Way
from tests.contract.settlements import (
    ACK,
    Again,
    Buried,
    Drained,
    HandedOver,
    Parked,
    Settlement,
    Swept,
    Unanswered,
    Unburied,
)
from tests.support.host import QUICK

HOUR_S = 3600.0
ACK_WAIT = {"consumer": {"ack_wait": "1s"}}
OWN = [0.2, HOUR_S, 7.0]
PATIENT = {"retry": {**QUICK, "attempts": 50}}

WITH_CONSUMER = tuple(kind for kind in KINDS if not kind.is_scheduled)
"""A schedule's ticks have no payload, and an ack wait that nobody sets."""
ORDERED = tuple(kind for kind in KINDS if kind.is_ordered)
LIMITED = tuple(kind for kind in KINDS if not kind.is_ordered)
"""Those whose consumers JetStream itself limits to so many deliveries."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: a sentence; the id of its tests.
        steps: for each call the function's behaviour and the expected settlement.
        spec: keys of the function's manifest.
        payload: the payload for a handler with a schema; None for any bytes.
        refusal: a stream that refuses messages from the first call on, and why.
        grace_s: how long a drain waits.
        in_own_process: whether the host needs a process of its own, since it may die.
        kinds: the kinds of functions that the row holds for.
        steps_without_schedules: how many of the steps there are before nats-server 2.12, which then
            gives the message up; None for all.
    """

    name: str
    steps: Sequence[tuple[Play, Settlement]]
    spec: Mapping[str, Any] = field(default_factory=dict)
    payload: bytes | None = None
    refusal: tuple[str, Way] | None = None
    grace_s: float = 10.0
    in_own_process: bool = False
    kinds: Sequence[Kind] = KINDS
    steps_without_schedules: int | None = None


STORED_AT_LAST = (
    (rejects("BAD", "never"), Unburied()),
    (rejects("BAD", "never"), Unburied(last=True)),
    (rejects("BAD", "never"), Buried("BAD", "never", "Reject")),
)

ROWS = (
    Row(
        "a_message_is_acknowledged_only_after_the_function_has_returned",
        [(RETURN, ACK)],
    ),
    Row(
        "a_retry_comes_back_after_its_delay_as_the_next_attempt",
        [(retries("not yet", 0.5), Again(0.5)), (RETURN, ACK)],
    ),
    Row(
        "whatever_a_function_raises_is_another_attempt_and_each_waits_twice_as_long",
        [
            (raises("ValueError"), Again(0.1)),
            (raises("SystemExit"), Again(0.2)),
            (raises("CancelledError"), Again(0.4)),
            (raises("StopIteration"), Again(0.8)),
            (RETURN, ACK),
        ],
        spec={"retry": {**QUICK, "attempts": 5}},
    ),
    Row(
        "a_call_that_is_too_long_is_ended_and_made_again",
        [(HANG, Again(0.1)), (RETURN, ACK)],
        spec={"timeout": "500ms"},
    ),
    Row(
        "a_long_wait_is_parked_and_ends_as_the_same_message",
        [(retries("it is away", HOUR_S), Parked(HOUR_S, "it is away")), (RETURN, ACK)],
    ),
    Row(
        "attempts_before_and_after_parking_count_together",
        [
            (retries("it is away", HOUR_S), Parked(HOUR_S, "it is away")),
            (retries("not yet", 0.2), Again(0.2)),
            (
                retries("still away", HOUR_S),
                Buried("ATTEMPTS_EXHAUSTED", "still away", "Retry", ["Retry"]),
            ),
        ],
    ),
    Row(
        "a_call_with_a_schedule_of_its_own_has_the_attempts_and_waits_of_that_schedule",
        [
            (raises_by(OWN), Again(0.2)),
            # JetStream would not deliver it a third time.
            (raises_by(OWN), Parked(HOUR_S, "broken")),
            (raises_by(OWN), Parked(7.0, "broken")),
            (
                raises_by(OWN),
                Buried("ATTEMPTS_EXHAUSTED", "broken", "ValueError", ["ValueError: broken"]),
            ),
        ],
        spec={"retry": {**QUICK, "attempts": 2}},
        kinds=named("single", "single_in_thread", "fair"),
        steps_without_schedules=2,
    ),
    Row(
        "an_ordered_call_with_a_schedule_of_its_own_waits_in_place",
        [
            (raises_by([0.2]), Again(0.2)),
            (
                raises_by([0.2]),
                Buried("ATTEMPTS_EXHAUSTED", "broken", "ValueError", ["ValueError: broken"]),
            ),
        ],
        spec={"retry": {**QUICK, "attempts": 1}},
        kinds=named("ordered"),
    ),
    Row(
        "a_long_wait_that_cannot_be_parked_is_waited_for_in_the_stream",
        [(retries("it is away", HOUR_S), Again(HOUR_S)), (RETURN, ACK)],
        refusal=("MAILBOX", "narrow"),
    ),
    Row(
        "a_rejected_message_is_a_dead_letter_at_once",
        [
            (
                rejects("UNKNOWN_ROUTE", "no such route"),
                Buried("UNKNOWN_ROUTE", "no such route", "Reject"),
            )
        ],
    ),
    Row(
        "a_payload_that_does_not_fit_is_a_dead_letter_and_never_seen",
        [(NOT_CALLED, Buried("PAYLOAD_INVALID", "number", "PayloadError"))],
        payload=b'{"number":   "a secret"}',
        kinds=WITH_CONSUMER,
    ),
    Row(
        "the_last_failed_attempt_is_a_dead_letter_with_its_traceback",
        [
            (raises("ValueError"), Again(0.1)),
            (raises("ValueError"), Again(0.2)),
            (
                raises("ValueError"),
                Buried(
                    "ATTEMPTS_EXHAUSTED", "broken", "ValueError", ["in _act", "ValueError: broken"]
                ),
            ),
        ],
    ),
    Row(
        "the_last_attempt_that_is_too_long_is_a_dead_letter",
        [(HANG, Buried("TIMEOUT", "", "TimeLimitExceeded", ["TimeLimitExceeded"]))],
        spec={"timeout": "500ms", "retry": {**QUICK, "attempts": 1}},
    ),
    Row(
        "a_dead_letter_that_finds_no_room_keeps_the_message",
        STORED_AT_LAST,
        spec=PATIENT,
        refusal=("DEAD_LETTERS", "full"),
    ),
    Row(
        "a_dead_letter_that_finds_no_stream_keeps_the_message",
        STORED_AT_LAST,
        spec=PATIENT,
        refusal=("DEAD_LETTERS", "deleted"),
    ),
    Row(
        "a_message_whose_dead_letter_is_refused_to_the_end_is_swept_up",
        [
            (raises("ValueError"), Again(0.1)),
            (raises("ValueError"), Unburied()),
            (NOT_DELIVERED, Swept()),
        ],
        spec={"retry": {**QUICK, "attempts": 2}},
        refusal=("DEAD_LETTERS", "full"),
        kinds=LIMITED,
    ),
    Row(
        "an_ordered_message_whose_dead_letter_is_refused_comes_back_until_it_is_stored",
        [
            (raises("ValueError"), Unburied()),
            (raises("ValueError"), Unburied(last=True)),
            (
                raises("ValueError"),
                Buried("ATTEMPTS_EXHAUSTED", "broken", "ValueError", ["ValueError: broken"]),
            ),
        ],
        spec={"retry": {**QUICK, "attempts": 1}},
        refusal=("DEAD_LETTERS", "full"),
        kinds=ORDERED,
    ),
    Row(
        "a_message_whose_process_dies_is_delivered_again",
        [(CRASH, Unanswered()), (RETURN, ACK)],
        spec=ACK_WAIT,
        in_own_process=True,
        kinds=named("single", "batch", "isolated", "ordered"),
    ),
    Row(
        "a_message_that_kills_its_process_each_time_is_a_dead_letter",
        [(CRASH, Unanswered()), (CRASH, Swept())],
        spec={**ACK_WAIT, "retry": {**QUICK, "attempts": 2}},
        in_own_process=True,
        kinds=named("single", "batch", "isolated"),
    ),
    Row(
        "an_ordered_message_that_kills_its_process_each_time_is_a_dead_letter",
        [
            (CRASH, Unanswered()),
            (CRASH, Unanswered()),
            (CRASH, Unanswered()),
            (NOT_CALLED, Buried("MAX_DELIVERIES", "the process died or hung", "")),
        ],
        spec={**ACK_WAIT, "retry": {**QUICK, "attempts": 1}},
        in_own_process=True,
        kinds=named("ordered"),
    ),
    Row(
        "a_message_that_takes_longer_than_its_ack_wait_is_not_delivered_again",
        [(Outlast(1.0), ACK)],
        spec=ACK_WAIT,
        kinds=WITH_CONSUMER,
    ),
    Row(
        "what_is_here_when_the_host_drains_is_finished_while_nothing_is_pulled",
        [(ReturnWhileDraining(), Drained())],
    ),
    Row(
        "what_is_not_finished_in_time_is_handed_over_and_uses_up_no_attempt",
        [(OutlastGrace(), HandedOver()), (RETURN, ACK)],
        grace_s=0.2,
    ),
)
