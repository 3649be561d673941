"""What has become of a volume's declaration on this machine: served, refused, or let go. Read from the state folder.

Used by `volume add`, `remove`, `pause` and `resume`, which wait for it. Only what a living process reported after the declaration counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hostoffload import local_state
from hostoffload.local_state import LocalState, Report
from stream.errors import RetryError

POLL_S = 0.05
HOLDERS = ("capture", "publisher", "target")


def agent_runs(local: LocalState) -> bool:
    """Tell whether both processes of this machine's agent report."""
    return all(any(one.alive for one in local.of_kind(kind)) for kind in ("capture", "publisher"))


def wait_served(state_dir: Path, volume: str, since_ns: int, timeout_s: float, *, bear_errors: bool = False) -> None:
    """Return when the export is served. Raises RetryError: refused by the agent (at once, unless `bear_errors`), or not in time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        report = _fresh_capture(local_state.read(state_dir), volume, since_ns)
        facts = report.volumes[volume] if report is not None else {}
        if facts.get("serving"):
            return
        told = facts.get("error") or ""
        late = time.monotonic() >= deadline_s
        if told and (late or not bear_errors):
            raise RetryError(
                f"The agent does not serve {volume}: {told}",
                hint=f"It tries again by itself; `hostoffload volume remove {volume}` takes it back.",
            )
        if late:
            raise RetryError(
                f"{volume} is not served within {timeout_s:.0f} s ({facts.get('mode_reason') or 'the agent has not taken it up'})",
                hint="It stays declared and is served as soon as it can be; see `hostoffload status`.",
            )
        time.sleep(POLL_S)


def wait_let_go(state_dir: Path, volume: str, since_ns: int, timeout_s: float, kinds: tuple[str, ...] = HOLDERS) -> None:
    """Return when no living process works on the volume any more. Raises RetryError when one still does after the time."""
    _wait(
        lambda: _holders(local_state.read(state_dir), volume, since_ns, kinds),
        timeout_s,
        lambda left: RetryError(
            f"{volume} is still held by {', '.join(left)} after {timeout_s:.0f} s",
            hint="It is let go as soon as it can be; see `hostoffload status`.",
        ),
    )


def wait_ended_at(state_dir: Path, volume: str, target: str, since_ns: int, timeout_s: float) -> None:
    """Return when no living target of that name works on the volume here. Raises RetryError when one still does after the time."""

    def left() -> list[str]:
        reports = [one for one in local_state.read(state_dir).of_kind("target") if one.instance == target and one.alive]
        return [one.instance for one in reports if one.at_ns <= since_ns or volume in one.volumes]

    _wait(left, timeout_s, lambda names: RetryError(f"{volume} is still held by the target {', '.join(names)} after {timeout_s:.0f} s"))


def _wait(left: Callable[[], list[str]], timeout_s: float, refusal: Callable[[list[str]], RetryError]) -> None:
    deadline_s = time.monotonic() + timeout_s
    while found := left():
        if time.monotonic() >= deadline_s:
            raise refusal(found)
        time.sleep(POLL_S)


def _fresh_capture(local: LocalState, volume: str, since_ns: int) -> Report | None:
    report = local.newest("capture", volume)
    return report if report is not None and report.alive and report.at_ns > since_ns else None


def _holders(local: LocalState, volume: str, since_ns: int, kinds: tuple[str, ...]) -> list[str]:
    """Return the kinds of living processes that report the volume, or have not reported since."""
    return [one.kind for one in local.reports if one.alive and one.kind in kinds and (one.at_ns <= since_ns or volume in one.volumes)]
