"""The status: what is known of living and dead processes, and what is not."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

from hostoffload.broker.interface import BrokerStatus
from hostoffload.cli.status_view import view
from hostoffload.local_state import LocalState, Report, Supervised, SupervisorFacts
from hostoffload.status import merge

NOW_NS = 1_000_000_000_000
SECOND_NS = 1_000_000_000
# The keys of design section 10, "What programs may rely on", as they stand there.
VOLUME_KEYS = {
    "history",
    "volume",
    "uri",
    "source",
    "replica",
    "mode",
    "mode_since",
    "mode_reason",
    "position",
    "captured_bytes",
    "resync_bytes",
    "sync_percent",
    "rpo_ms",
    "rpo_stream_ms",
    "backlog_bytes",
    "eta_s",
    "buffer_used_bytes",
    "buffer_bytes_max",
    "outage_s",
    "gaps",
    "proved_position",
    "replica_state",
    "targets",
    "ring",
    "verify",  # added to them: what `status` shows of a round that runs
}
CAPTURE = {
    "position": "00000001-0000000000000009",
    "serving": True,
    "mode": "DATA",
    "mode_since": 17.5,
    "mode_reason": "first copy done",
    "captured_bytes": 4096,
    "resync_bytes": 8192,
    "sync_percent": 100.0,
    "eta_s": 0.0,
    "buffer_used_bytes": 512,
    "buffer_bytes_max": 1 << 28,
    "ring": "/dev/shm/x/db.ring",
}
PUBLISHER = {
    "position": "00000001-0000000000000008",
    "captured": "00000001-0000000000000009",
    "rpo_stream_ms": 3.0,
    "backlog_bytes": 4096,
    "outage_s": 40.0,
    "oldest_unapplied_position": "00000001-0000000000000008",
    "oldest_unapplied_capture_ns": NOW_NS - 2 * SECOND_NS,
}
CX = {"position": "00000001-0000000000000008", "gaps": 1}
TARGET = {
    "position": "00000001-0000000000000007",
    "consistent_at": None,
    "not_until": "00000001-0000000000000008",
    "gaps": 1,
    "open_gaps": 0,
}
DECLARED = {"volume": "db", "state": "active", "source": "/a", "replicas": [{"target": "target", "path": "/b", "delay_s": 0.0}]}
BROKER = BrokerStatus("jars", "127.0.0.1:9", 77, True)


def report(
    kind: str, facts: dict[str, Any] | None, *, alive: bool = True, instance: str = "one", at_ns: int = NOW_NS, pid: int = 5
) -> Report:
    return Report(kind, instance, pid, at_ns, alive, {} if facts is None else {"db": facts})


def state(*reports: Report, declared: dict[str, Any] | None = DECLARED, supervisor: SupervisorFacts | None = None) -> LocalState:
    return LocalState(tuple(reports), supervisor, {"db": declared} if declared else {})


def status(local: LocalState, broker: BrokerStatus | None = BROKER) -> dict[str, Any]:
    return merge(local, broker, now_ns=NOW_NS, uri_of=lambda name: f"nbd:///{name}", buffer_bytes_max=99)


def volume(local: LocalState) -> dict[str, Any]:
    (one,) = status(local)["volumes"]
    return one


RUNNING = (report("capture", CAPTURE), report("publisher", PUBLISHER), report("cx", CX), report("target", TARGET, instance="target"))


def test_a_running_volume_has_exactly_the_promised_facts() -> None:
    one = volume(state(*RUNNING))
    assert set(one) == VOLUME_KEYS
    assert one["position"] == {
        "captured": CAPTURE["position"],
        "published": PUBLISHER["position"],
        "journaled": CX["position"],
        "applied": TARGET["position"],
    }
    told = {"volume": "db", "uri": "nbd:///db", "source": "/a", "replica": "/b", "gaps": 1, "ring": "/dev/shm/x/db.ring", "outage_s": 40.0}
    assert told.items() <= one.items()
    assert one["replica_state"] == {"consistent_at": None, "not_until": TARGET["not_until"]}
    assert one["targets"] == [{"name": "target", "applied": TARGET["position"], "delay_s": 0.0}]


def test_a_round_that_runs_is_shown_and_a_dead_target_says_nothing_of_now() -> None:
    facts = TARGET | {"proved_position": "00000001-0000000000000003", "verify_round": "b4", "verify_percent": 25.0}
    facts |= {"verify_mismatches": 2, "repairs_open": 1}
    told = volume(state(*RUNNING[:3], report("target", facts, instance="target")))
    assert told["proved_position"] == "00000001-0000000000000003"
    assert told["verify"] == {"round": "b4", "percent": 25.0, "mismatches": 2, "repairs_open": 1}
    page = view({"volumes": [told], "processes": [], "broker": {"kind": None}}, bars=False)
    shown = "".join(one.text for one in Console(width=200).render(page))
    assert "equal at 00000001-0000000000000003; 2 chunks differed so far, 1 not copied again yet; round b4 at 25.0 %" in shown
    dead = volume(state(*RUNNING[:3], report("target", facts, instance="target", alive=False)))
    assert dead["verify"] == {"round": "b4", "percent": None, "mismatches": 2, "repairs_open": 1}


def test_nothing_known_is_null_and_not_an_error() -> None:
    one = volume(state())
    assert set(one) == VOLUME_KEYS
    assert (one["mode"], one["mode_reason"]) == ("OFFLINE", "not served yet")
    assert one["position"] == {"captured": None, "published": None, "journaled": None, "applied": None}
    assert one["rpo_ms"] is None and one["gaps"] is None and one["buffer_bytes_max"] == 99
    assert status(LocalState((), None, {}), None) == {
        "volumes": [],
        "processes": [],
        "broker": {"kind": None, "bootstrap": None, "pid": None},
    }


def test_a_dead_capture_serves_nothing_but_its_position_stays() -> None:
    dead = report("capture", CAPTURE, alive=False)
    one = volume(state(dead, *RUNNING[1:]))
    assert (one["mode"], one["mode_since"]) == ("OFFLINE", None)
    assert "does not run" in one["mode_reason"]
    assert one["position"]["captured"] == CAPTURE["position"] and one["ring"] == CAPTURE["ring"]
    assert one["buffer_used_bytes"] is None


def test_a_dead_publisher_tells_no_rates() -> None:
    one = volume(state(RUNNING[0], report("publisher", PUBLISHER, alive=False), *RUNNING[2:]))
    assert (one["rpo_stream_ms"], one["backlog_bytes"], one["outage_s"]) == (None, None, None)
    assert one["position"]["published"] == PUBLISHER["position"]


def test_the_lag_is_that_of_the_oldest_record_not_applied() -> None:
    assert volume(state(*RUNNING))["rpo_ms"] == 2000.0


def test_the_lag_is_nothing_when_all_is_applied() -> None:
    caught_up = report("target", TARGET | {"position": CAPTURE["position"]}, instance="target")
    assert volume(state(*RUNNING[:3], caught_up))["rpo_ms"] == 0


def test_the_lag_is_as_old_as_the_loss_of_order() -> None:
    """What is written in BITMAP is no record: all that was captured is applied, and yet the replica lacks it."""
    lost = report("publisher", PUBLISHER | {"order_lost_ns": NOW_NS - 5 * SECOND_NS})
    assert volume(state(RUNNING[0], lost, *RUNNING[2:]))["rpo_ms"] == 5000.0
    caught_up = report("target", TARGET | {"position": CAPTURE["position"]}, instance="target")
    assert volume(state(RUNNING[0], lost, RUNNING[2], caught_up))["rpo_ms"] == 5000.0


def test_a_lag_of_which_only_a_bound_is_known_is_that_bound() -> None:
    """The record that the publisher names is applied by now: the next one is younger."""
    facts = PUBLISHER | {"oldest_unapplied_position": "00000001-0000000000000006", "oldest_unapplied_capture_ns": NOW_NS - SECOND_NS}
    assert volume(state(RUNNING[0], report("publisher", facts), *RUNNING[2:]))["rpo_ms"] == 1000.0


def test_a_lag_of_which_nothing_is_known_is_null() -> None:
    assert volume(state(RUNNING[0], *RUNNING[2:]))["rpo_ms"] is None


def test_applied_is_the_least_of_the_targets_without_a_delay() -> None:
    replicas = [{"target": name, "path": f"/{name}", "delay_s": delay} for name, delay in (("slow", 3600.0), ("far", 0.0), ("near", 0.0))]
    targets = (
        report("target", TARGET | {"position": "00000001-0000000000000006", "gaps": 4}, instance="far"),
        report("target", TARGET | {"position": "00000001-0000000000000008"}, instance="near"),
        report("target", TARGET | {"position": "00000001-0000000000000001"}, instance="slow"),
    )
    one = volume(state(*RUNNING[:2], *targets, declared=DECLARED | {"replicas": replicas}))
    assert one["position"]["applied"] == "00000001-0000000000000006"
    assert one["gaps"] == 4
    assert one["replica"] == "/far"
    assert [(each["name"], each["delay_s"]) for each in one["targets"]] == [("far", 0.0), ("near", 0.0), ("slow", 3600.0)]


def test_a_target_on_another_machine_is_shown_as_the_publisher_heard_it() -> None:
    replicas = [{"target": name, "path": f"/{name}", "delay_s": 0.0} for name in ("target", "far")]
    heard = {"far": {"position": "00000001-0000000000000003", "gaps": 7}, "target": {"position": "00000001-0000000000000001"}}
    publisher = report("publisher", PUBLISHER | {"targets": json.dumps(heard)})
    one = volume(state(RUNNING[0], publisher, *RUNNING[2:], declared=DECLARED | {"replicas": replicas}))
    applied = {each["name"]: each["applied"] for each in one["targets"]}
    assert applied == {"far": "00000001-0000000000000003", "target": TARGET["position"]}, "what is told here is newer"
    assert (one["position"]["applied"], one["gaps"]) == ("00000001-0000000000000003", 7)


def test_applied_is_unknown_while_one_target_has_told_nothing() -> None:
    replicas = [{"target": name, "path": f"/{name}", "delay_s": 0.0} for name in ("target", "silent")]
    assert volume(state(*RUNNING, declared=DECLARED | {"replicas": replicas}))["position"]["applied"] is None


def test_of_two_reports_the_living_one_counts() -> None:
    newer_but_dead = report("capture", CAPTURE | {"mode": "SYNC"}, alive=False, instance="old", at_ns=NOW_NS + 1)
    assert volume(state(newer_but_dead, *RUNNING))["mode"] == "DATA"


def test_a_paused_volume_says_so() -> None:
    one = volume(state(report("capture", None), declared=DECLARED | {"state": "paused"}))
    assert (one["mode"], one["mode_reason"]) == ("OFFLINE", "paused")


def test_an_error_is_the_reason() -> None:
    refused = report(
        "capture", {"position": "00000000-0000000000000000", "mode": "OFFLINE", "serving": False, "error": "The source is held."}
    )
    assert volume(state(refused))["mode_reason"] == "The source is held."
    parked = report("target", TARGET | {"error": "Bytes are wrong."}, instance="target")
    assert volume(state(*RUNNING[:3], parked))["mode_reason"] == "Bytes are wrong."


def test_without_declarations_the_living_processes_name_the_volumes() -> None:
    local = state(*RUNNING, declared=None)
    assert [one["volume"] for one in status(local)["volumes"]] == ["db"]
    assert volume(local)["position"]["applied"] == TARGET["position"]
    assert status(state(report("cx", CX, alive=False), declared=None))["volumes"] == []


def supervisor(*processes: Supervised) -> SupervisorFacts:
    return SupervisorFacts(100, 7.0, "all", processes)


def test_processes_are_the_supervisor_what_it_supervises_and_what_runs_without_it() -> None:
    known = supervisor(
        Supervised("broker", "broker", 60, 8.0, 1, None, None),
        Supervised("capture", "capture", 5, 8.0, 2, -9, None),
        Supervised("cx", "cx", None, None, 3, 1, None),
    )
    lonely = report("target", TARGET, pid=6)
    processes = status(state(RUNNING[0], lonely, supervisor=known))["processes"]
    assert processes == [
        {"kind": "supervisor", "pid": 100, "volume": None, "restarts": 0, "since": 7.0},
        {"kind": "capture", "pid": 5, "volume": None, "restarts": 2, "since": 8.0},
        {"kind": "cx", "pid": None, "volume": None, "restarts": 3, "since": None},
        {"kind": "target", "pid": 6, "volume": None, "restarts": None, "since": None},
        {"kind": "broker", "pid": 77, "volume": None, "restarts": 1, "since": 8.0},
    ]


def test_what_a_killed_supervisor_left_is_shown_under_a_dead_one() -> None:
    local = LocalState((), None, {}, (Supervised("capture", "capture", 5, 8.0, 2, None, None),))
    assert [(one["kind"], one["pid"], one["restarts"]) for one in status(local, None)["processes"]] == [
        ("supervisor", None, None),
        ("capture", 5, 2),
    ]


def test_an_external_broker_is_no_process() -> None:
    told = status(state(), BrokerStatus("external", "kafka:9092", None, True))
    assert told["processes"] == []
    assert told["broker"] == {"kind": "external", "bootstrap": "kafka:9092", "pid": None}


def test_history_is_what_the_cx_says() -> None:
    cx = CX | {"persisted": "p", "segments": 4, "folded": "f", "expired": 2, "history_different": 1, "fold_error": "damaged"}
    facts = {"persisted": "p", "segments": 4, "folded": "f", "expired": 2, "different": 1, "error": "damaged"}
    assert volume(state(report("cx", cx)))["history"] == facts
    assert volume(state())["history"] == dict.fromkeys(facts)
