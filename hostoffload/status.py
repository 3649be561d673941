"""The status: one JSON-able answer made from what the state folder tells (design section 10, "What programs may rely on").

Pure: `merge` gets what was read and the time, and does no I/O. What is not known is None; what a dead process last said counts only
where it stays true without it (a position, never a rate or a mode).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hostoffload.local_state import LocalState, Report

if TYPE_CHECKING:
    from hostoffload.broker.interface import BrokerStatus

KINDS = ("supervisor", "capture", "publisher", "cx", "target", "broker", "export", "metrics")
OFFLINE, BITMAP = "OFFLINE", "BITMAP"

Facts = Mapping[str, Any]
_NOTHING: Facts = {}


def merge(
    local: LocalState, broker: BrokerStatus | None, *, now_ns: int, uri_of: Callable[[str], str], buffer_bytes_max: int | None
) -> dict[str, Any]:
    """Return the whole status."""
    return {
        "volumes": [_volume(name, local, now_ns, uri_of, buffer_bytes_max) for name in local.volume_names()],
        "processes": list(_processes(local, broker)),
        "broker": {
            "kind": broker.kind if broker else None,
            "bootstrap": broker.bootstrap if broker else None,
            "pid": broker.pid if broker else None,
        },
    }


@dataclass(frozen=True, slots=True)
class _Targets:
    """What the targets of one volume say; `applied` and the facts count those without a delay; `alive` tells which of `prompt` live."""

    shown: list[dict[str, Any]]
    prompt: list[Facts]
    alive: list[bool]

    @property
    def applied(self) -> str | None:
        positions = [one["applied"] for one in self.shown if not one["delay_s"]]
        return None if not positions or None in positions else min(positions)

    def fact(self, key: str) -> Any:
        """Return the fact of the target that is furthest behind."""
        return self.prompt[0].get(key) if self.prompt else None

    def fact_now(self, key: str) -> Any:
        """Return the same if that target lives."""
        return self.fact(key) if self.alive and self.alive[0] else None


def _volume(name: str, local: LocalState, now_ns: int, uri_of: Callable[[str], str], buffer_bytes_max: int | None) -> dict[str, Any]:
    declared = local.declared.get(name, _NOTHING)
    captured_by, published_by, journaled_by = (local.newest(kind, name) for kind in ("capture", "publisher", "cx"))
    capture, publisher, cx = (_facts(report, name) for report in (captured_by, published_by, journaled_by))
    capture_now, publisher_now = _if_alive(captured_by, capture), _if_alive(published_by, publisher)
    targets = _targets(name, local, declared)
    captured = _newest([capture.get("position"), publisher.get("captured"), publisher.get("position")])
    mode, reason = _mode(declared, captured_by, capture_now)
    return {
        "volume": name,
        "uri": uri_of(name),
        "source": declared.get("source"),
        "replica": _replica_path(declared),
        "mode": mode,
        "mode_since": capture_now.get("mode_since"),
        "mode_reason": _first_known(
            capture_now.get("error"),
            reason if mode == BITMAP else None,  # why order is lost says more than what was said by those who can't go on meanwhile
            publisher_now.get("error"),
            cx.get("error"),
            targets.fact("error"),
            reason,
        ),
        "position": {
            "captured": captured,
            "published": publisher.get("position"),
            "journaled": _first_known(cx.get("position"), publisher.get("journaled")),
            "applied": targets.applied,
        },
        "captured_bytes": capture.get("captured_bytes"),
        "resync_bytes": capture.get("resync_bytes"),
        "sync_percent": capture_now.get("sync_percent"),
        "rpo_ms": _rpo_ms(captured, targets, publisher, now_ns),
        "rpo_stream_ms": publisher_now.get("rpo_stream_ms"),
        "backlog_bytes": publisher_now.get("backlog_bytes"),
        "eta_s": capture_now.get("eta_s"),
        "buffer_used_bytes": capture_now.get("buffer_used_bytes"),
        "buffer_bytes_max": capture.get("buffer_bytes_max", buffer_bytes_max),
        "outage_s": publisher_now.get("outage_s"),
        "gaps": max((count for count in (capture.get("gaps"), cx.get("gaps"), targets.fact("gaps")) if count is not None), default=None),
        "proved_position": targets.fact("proved_position"),
        "verify": {
            "round": targets.fact("verify_round"),
            "percent": targets.fact_now("verify_percent"),
            "mismatches": targets.fact("verify_mismatches"),
            "repairs_open": targets.fact("repairs_open"),
        },
        "replica_state": {"consistent_at": targets.fact("consistent_at"), "not_until": targets.fact("not_until")},
        "targets": targets.shown,
        "history": _history(cx, publisher),
        "ring": capture.get("ring"),
    }


def _history(cx: Facts, publisher: Facts) -> dict[str, Any]:
    """Return what the CX that has the volume said of its history, on another machine what was heard of it; counts are since that worker's
    start."""
    return {
        "persisted": _first_known(cx.get("persisted"), publisher.get("persisted")),
        "segments": cx.get("segments"),
        "folded": cx.get("folded"),
        "expired": cx.get("expired"),
        "different": cx.get("history_different"),
        "error": _first_known(cx.get("persist_error"), cx.get("fold_error")),
    }


def _facts(report: Report | None, volume: str) -> Facts:
    return report.volumes[volume] if report is not None else _NOTHING


def _if_alive(report: Report | None, facts: Facts) -> Facts:
    """Return the facts if their writer lives: what it was doing when it died says nothing about now."""
    return facts if report is not None and report.alive else _NOTHING


def _mode(declared: Facts, captured_by: Report | None, capture_now: Facts) -> tuple[str | None, str | None]:
    """Return mode and reason: OFFLINE when nobody serves the volume here, unknown when it is another host's."""
    if capture_now:
        return capture_now.get("mode"), capture_now.get("mode_reason")
    if declared.get("state") == "paused":
        return OFFLINE, "paused"
    if not declared:
        return None, None
    return OFFLINE, "the capture process does not run" if captured_by is not None and not captured_by.alive else "not served yet"


def _replica_path(declared: Facts) -> str | None:
    """Return the replica of the target without a delay, of the first one if all have one."""
    replicas = sorted(declared.get("replicas", ()), key=lambda one: one.get("delay_s", 0.0))
    return replicas[0].get("path") if replicas else None


def _targets(name: str, local: LocalState, declared: Facts) -> _Targets:
    delays = {one["target"]: one.get("delay_s", 0.0) for one in declared.get("replicas", ())}
    reports = local.targets(name)
    told = {instance: report.volumes[name] for instance, report in reports.items()}
    names = delays if delays else told
    shown = [
        {
            "name": one,
            "applied": told.get(one, _NOTHING).get("position"),
            "delay_s": delays.get(one, _number(told.get(one, _NOTHING).get("delay_s"))),
        }
        for one in sorted(names)
    ]
    prompt = [reports[one["name"]] for one in shown if one["name"] in told and not one["delay_s"]]
    prompt.sort(key=lambda report: report.volumes[name].get("position") or "")
    return _Targets(shown, [report.volumes[name] for report in prompt], [report.alive for report in prompt])


def _rpo_ms(captured: str | None, targets: _Targets, publisher: Facts, now_ns: int) -> float | None:
    """Return the age of the oldest captured record that the replica lacks, 0 if it lacks none; while order is lost, since when it is.

    The publisher's fact is exact as long as the record that it names is not applied; later it is the closest bound from above, because
    capture times never fall. So is the capture time of the newest record that the target applied.
    """
    applied, lost_ns = targets.applied, publisher.get("order_lost_ns")
    if captured is None or applied is None:
        return None
    if applied >= captured:
        if lost_ns is None:
            return 0.0
        known_ns = None
    else:
        known_ns = publisher.get("oldest_unapplied_capture_ns")
        if known_ns is None or (publisher.get("oldest_unapplied_position") or "") <= applied:
            known_ns = max((one for one in (known_ns, targets.fact("applied_capture_ns")) if one is not None), default=None)
    known_ns = min((one for one in (known_ns, lost_ns) if one is not None), default=None)
    return None if known_ns is None else round(max(0, now_ns - known_ns) / 1e6, 3)


def _processes(local: LocalState, broker: BrokerStatus | None) -> Iterable[dict[str, Any]]:
    """Yield the supervisor, what it supervises, and services that run without it."""
    found: list[dict[str, Any]] = []
    if local.supervisor is not None:
        found.append(_process("supervisor", local.supervisor.pid, 0, local.supervisor.since))
    elif local.orphans:
        found.append(_process("supervisor", None, None, None))
    supervised = local.supervisor.processes if local.supervisor is not None else local.orphans
    found += [_process(one.kind, one.pid, one.restarts, one.since) for one in supervised]
    known = {one["pid"] for one in found}
    found += [_process(one.kind, one.pid, None, None) for one in local.reports if one.alive and one.pid not in known and one.kind in KINDS]
    if broker is not None and broker.kind != "external":
        found = _with_broker(found, broker)
    return sorted(found, key=lambda one: KINDS.index(one["kind"]))


def _with_broker(found: list[dict[str, Any]], broker: BrokerStatus) -> list[dict[str, Any]]:
    """Show the broker's own pid (the supervisor may know only its container's client), and the broker at all."""
    told = [one for one in found if one["kind"] == "broker"]
    for one in told:
        one["pid"] = broker.pid
    return found if told else [*found, _process("broker", broker.pid, None, None)]


def _process(kind: str, pid: int | None, restarts: int | None, since: float | None) -> dict[str, Any]:
    return {"kind": kind, "pid": pid, "volume": None, "restarts": restarts, "since": since}


def _newest(positions: Iterable[str | None]) -> str | None:
    """Return the highest position: they are printed so that text sorts as they do."""
    return max((one for one in positions if one is not None), default=None)


def _first_known(*values: Any) -> Any:
    return next((one for one in values if one is not None), None)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
