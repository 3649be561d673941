"""The table of all metrics: name, type, labels, meaning, and the fact of a report that each is read from.

`docs/metrics.md` shows the same table and a test compares them; alert rules and dashboard are checked against it. A fact that is unknown
(None, or absent from the report) makes no sample. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stream.position import ZERO, Position

GAUGE, COUNTER = "gauge", "counter"
MODES = ("SYNC", "DATA", "BITMAP", "RESYNC", "OFFLINE")
REPLICA_STATES = ("starting", "applying", "held", "paused", "parked", "retrying")
Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fact:
    """Where a sample comes from: fact `key` of the reports of `kind`, as a number by `value` (None: unknown); `labels` are those it
    always has.

    `unknown` is the value where the fact is there and None; None: then there is no sample. Nor is there one unless `when` says of all
    facts of the volume that this one can be true.
    """

    kind: str
    key: str
    value: Callable[[Any], float | None] = float
    labels: Mapping[str, str] = field(default_factory=dict)
    unknown: float | None = None
    when: Callable[[Facts], bool] = lambda facts: True

    def read(self, facts: Facts) -> float | None:
        """Return what the facts of a volume say, None if it is not known."""
        if self.key not in facts or not self.when(facts):
            return None
        told = facts[self.key]
        return self.unknown if told is None else self.value(told)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family; `facts` is empty for what is told of processes (`hostoffload.metrics.collector`)."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str
    facts: tuple[Fact, ...] = ()

    @property
    def sample_name(self) -> str:
        """Return the name that queries use: counters end with `_total`."""
        return f"{self.name}_total" if self.kind == COUNTER else self.name


def _sequence(text: str) -> float | None:
    """ZERO is told by who has not looked yet."""
    return Position.parse(text).sequence or None


def _epoch(text: str) -> float | None:
    return Position.parse(text).epoch or None


def _seconds_of_ms(milliseconds: float) -> float:
    return milliseconds / 1e3


def _ratio_of_percent(percent: float) -> float:
    return percent / 100


def _is(wanted: str) -> Callable[[Any], float]:
    return lambda value: float(value == wanted)


def _one(_: Any) -> float:
    return 1.0


def _zero(_: Any) -> float:
    return 0.0


def _serving(facts: Facts) -> bool:
    return bool(facts.get("serving"))


def _has_journal(facts: Facts) -> bool:
    """Tell whether a CX worker has taken the volume; before that it counts from nothing."""
    return Position.parse(facts["position"]) != ZERO


def _labelled(facts: Facts) -> bool:
    """Tell whether a target knows its replica; before that it counts from nothing."""
    return bool(facts.get("consistent_at") or facts.get("not_until"))


def _stages(**facts: tuple[str, str]) -> tuple[Fact, ...]:
    return tuple(Fact(kind, key, _sequence, {"stage": stage}) for stage, (kind, key) in facts.items())


def _replica(key: str, value: Callable[[Any], float | None] = float) -> tuple[Fact, ...]:
    return (Fact("target", key, value, when=_labelled),)


VOLUME, TARGET, PROCESS = ("volume",), ("volume", "target"), ("process", "name")

METRICS: tuple[Metric, ...] = (
    # -- processes
    Metric("hostoffload_build_info", GAUGE, ("version",), "1; the version is its label"),
    Metric("hostoffload_process_up", GAUGE, PROCESS, "1 if the process runs, 0 if it is down and to be started again"),
    Metric("hostoffload_process_restarts", COUNTER, PROCESS, "times that the supervisor started the process again"),
    Metric("hostoffload_process_start_timestamp_seconds", GAUGE, PROCESS, "when the process started, since 1970"),
    Metric("hostoffload_process_resident_memory_bytes", GAUGE, PROCESS, "memory of the process, shared memory that it touched included"),
    Metric("hostoffload_process_cpu_seconds", COUNTER, PROCESS, "processor time of the process, user and system"),
    Metric(
        "hostoffload_report_age_seconds",
        GAUGE,
        PROCESS,
        "age of the report that the process's metrics are read from; beyond 10 s those are left out",
    ),
    # -- volume, at the agent
    Metric(
        "hostoffload_volume_mode",
        GAUGE,
        ("volume", "mode"),
        "1 for the mode that the volume is in, 0 for the others",
        tuple(Fact("capture", "mode", _is(mode), {"mode": mode}) for mode in MODES),
    ),
    Metric(
        "hostoffload_volume_mode_since_timestamp_seconds",
        GAUGE,
        VOLUME,
        "when the volume came into its mode, since 1970",
        (Fact("capture", "mode_since", when=_serving),),
    ),
    Metric(
        "hostoffload_volume_error",
        GAUGE,
        ("volume", "part"),
        "1 if that part of the work stands still or fails for the volume, 0 if not; `status` has the sentence",
        (
            Fact("capture", "error", _one, {"part": "capture"}, 0.0),
            Fact("publisher", "error", _one, {"part": "publish"}, 0.0),
            Fact("cx", "error", _one, {"part": "order"}, 0.0),
            Fact("cx", "persist_error", _one, {"part": "persist"}, 0.0),
            Fact("cx", "fold_error", _one, {"part": "fold"}, 0.0),
        ),
    ),
    Metric("hostoffload_volume_fenced", GAUGE, VOLUME, "1 if another agent took the volume over, 0 if not", (Fact("publisher", "fenced"),)),
    Metric(
        "hostoffload_rpo_seconds",
        GAUGE,
        ("volume", "stage"),
        "age of the oldest captured record that is not durable in the stream, the journal, the store, or on "
        "every replica without a delay; 0 if there is none; from BITMAP until order is back: since when "
        "order is lost",
        tuple(
            Fact("publisher", f"rpo_{stage}_ms", _seconds_of_ms, {"stage": stage}) for stage in ("stream", "journal", "store", "replica")
        ),
    ),
    Metric(
        "hostoffload_position_sequence",
        GAUGE,
        ("volume", "stage"),
        "sequence that a stage has reached; the difference of two stages is records",
        _stages(
            captured=("publisher", "captured"),
            published=("publisher", "position"),
            journaled=("cx", "position"),
            persisted=("cx", "persisted"),
            folded=("cx", "folded"),
        ),
    ),
    Metric("hostoffload_epoch", GAUGE, VOLUME, "epoch of the volume's capture", (Fact("publisher", "captured", _epoch),)),
    Metric("hostoffload_captured_bytes", COUNTER, VOLUME, "payload that applications wrote", (Fact("capture", "captured_bytes"),)),
    Metric("hostoffload_resync_bytes", COUNTER, VOLUME, "payload that first copy and resync sent", (Fact("capture", "resync_bytes"),)),
    Metric(
        "hostoffload_compared_bytes",
        COUNTER,
        VOLUME,
        "bytes that were compared with the replicas instead of sent",
        (Fact("capture", "compared_bytes"),),
    ),
    Metric("hostoffload_owed_bytes", GAUGE, VOLUME, "bytes that first copy or resync still has to send", (Fact("capture", "owed_bytes"),)),
    Metric(
        "hostoffload_sync_ratio",
        GAUGE,
        VOLUME,
        "how much of first copy or resync is done, 0 to 1; none while neither runs",
        (Fact("capture", "sync_percent", _ratio_of_percent),),
    ),
    Metric("hostoffload_sync_eta_seconds", GAUGE, VOLUME, "time until it is done at the present rate", (Fact("capture", "eta_s"),)),
    Metric(
        "hostoffload_backlog_bytes", GAUGE, VOLUME, "payload captured and not yet durable in Kafka", (Fact("publisher", "backlog_bytes"),)
    ),
    Metric(
        "hostoffload_buffer_used_bytes",
        GAUGE,
        VOLUME,
        "memory of the buffer that the volume holds",
        (Fact("capture", "buffer_used_bytes"),),
    ),
    Metric("hostoffload_buffer_max_bytes", GAUGE, (), "the buffer, for all volumes together", (Fact("capture", "buffer_bytes_max"),)),
    Metric(
        "hostoffload_outage_seconds",
        GAUGE,
        VOLUME,
        "how long the buffer keeps order at the present rate without Kafka; none if no end is in sight; 0 in BITMAP",
        (Fact("publisher", "outage_s"),),
    ),
    Metric(
        "hostoffload_gaps",
        COUNTER,
        VOLUME,
        "stretches in which order was lost since the volume was added; the first copy is none",
        (Fact("capture", "gaps"),),
    ),
    Metric("hostoffload_connections", GAUGE, VOLUME, "NBD connections", (Fact("capture", "connections"),)),
    # -- volume, at the CX
    Metric(
        "hostoffload_cx_journaled_bytes",
        COUNTER,
        VOLUME,
        "payload put in order and durable in the journal since the worker took the volume",
        (Fact("cx", "journaled_bytes"),),
    ),
    Metric(
        "hostoffload_cx_backlog_bytes",
        GAUGE,
        VOLUME,
        "messages that the worker holds and has not ordered yet",
        (Fact("cx", "backlog_bytes"),),
    ),
    Metric("hostoffload_cx_duplicates", COUNTER, VOLUME, "batches dropped because the journal had them", (Fact("cx", "duplicates"),)),
    Metric("hostoffload_cx_fenced", COUNTER, VOLUME, "batches of an older epoch dropped", (Fact("cx", "fenced_dropped"),)),
    Metric(
        "hostoffload_cx_out_of_sequence",
        COUNTER,
        VOLUME,
        "batches dropped because one before them lacked, which was asked for",
        (Fact("cx", "out_of_sequence"),),
    ),
    Metric("hostoffload_cx_takeovers", COUNTER, VOLUME, "times that the worker took the volume", (Fact("cx", "takeovers"),)),
    Metric("hostoffload_cx_gaps", COUNTER, VOLUME, "gaps written into the journal since the worker took the volume", (Fact("cx", "gaps"),)),
    Metric(
        "hostoffload_cx_open_gaps",
        GAUGE,
        VOLUME,
        "gaps of the journal that no resync has closed yet",
        (Fact("cx", "open_gaps", when=_has_journal),),
    ),
    Metric(
        "hostoffload_cx_parked",
        GAUGE,
        VOLUME,
        "1 if ordering stopped at something that does not go away by itself, 0 if not",
        (Fact("cx", "parked"),),
    ),
    # -- history
    Metric(
        "hostoffload_store_segment_bytes",
        COUNTER,
        VOLUME,
        "segments put into the store since the worker took the volume",
        (Fact("cx", "segment_bytes"),),
    ),
    Metric("hostoffload_history_folds", COUNTER, VOLUME, "folds made since the worker took the volume", (Fact("cx", "folds"),)),
    Metric(
        "hostoffload_history_expired_segments",
        COUNTER,
        VOLUME,
        "segments deleted by retention since the worker took the volume",
        (Fact("cx", "expired"),),
    ),
    Metric(
        "hostoffload_history_different",
        COUNTER,
        VOLUME,
        "chunks that the store showed otherwise than the source had them, since the worker took the volume",
        (Fact("cx", "history_different"),),
    ),
    Metric(
        "hostoffload_history_promised_seconds",
        GAUGE,
        VOLUME,
        "how far back every write is to be kept (`history.retention`); `ever` counts as 146 years",
        (Fact("cx", "promised_s"),),
    ),
    Metric(
        "hostoffload_history_every_write_seconds",
        GAUGE,
        VOLUME,
        "how far back from the newest record every write is stored; none before the first turn of folding and while folding fails",
        (Fact("cx", "every_write_s"),),
    ),
    Metric(
        "hostoffload_history_seconds", GAUGE, VOLUME, "how far back from the newest record any moment is stored", (Fact("cx", "history_s"),)
    ),
    # -- replica, at the target
    Metric(
        "hostoffload_replica_state",
        GAUGE,
        ("volume", "target", "state"),
        "1 for the state of the replica, 0 for the others",
        tuple(Fact("target", "state", _is(state), {"state": state}) for state in REPLICA_STATES),
    ),
    Metric(
        "hostoffload_replica_error",
        GAUGE,
        TARGET,
        "1 if the target can't go on with the replica, 0 if not; `status` has the sentence",
        (Fact("target", "error", _one, unknown=0.0),),
    ),
    Metric(
        "hostoffload_replica_consistent",
        GAUGE,
        TARGET,
        "1 if the replica is labelled consistent at a position, 0 if it is not until a later one, as while it is written",
        (Fact("target", "not_until", _zero), Fact("target", "consistent_at", _one)),
    ),
    Metric(
        "hostoffload_replica_applied_sequence",
        GAUGE,
        TARGET,
        "sequence up to which the replica has everything",
        (Fact("target", "position", _sequence),),
    ),
    Metric(
        "hostoffload_replica_applied_bytes", COUNTER, TARGET, "payload applied since the target started", (Fact("target", "applied_bytes"),)
    ),
    Metric("hostoffload_replica_waiting_bytes", GAUGE, TARGET, "read ahead while the replica is held at a gap", _replica("waiting_bytes")),
    Metric(
        "hostoffload_replica_delay_seconds", GAUGE, TARGET, "how far behind the replica is kept on purpose", (Fact("target", "delay_s"),)
    ),
    Metric("hostoffload_replica_open_gaps", GAUGE, TARGET, "gaps that no resync has closed yet", _replica("open_gaps")),
    Metric("hostoffload_replica_gaps", COUNTER, TARGET, "gaps since the replica was made", _replica("gaps")),
    Metric(
        "hostoffload_verify_ratio",
        GAUGE,
        TARGET,
        "how far the round of verification is that runs, 0 to 1; none while none runs",
        (Fact("target", "verify_percent", _ratio_of_percent),),
    ),
    Metric(
        "hostoffload_verify_proved_sequence",
        GAUGE,
        TARGET,
        "sequence at which the whole replica was last proved equal to the source",
        (Fact("target", "proved_position", _sequence),),
    ),
    Metric(
        "hostoffload_verify_mismatches", COUNTER, TARGET, "chunks that differed since the replica was made", _replica("verify_mismatches")
    ),
    Metric("hostoffload_verify_repairs_open", GAUGE, TARGET, "extents known to differ and not yet copied again", _replica("repairs_open")),
)
