"""What of a volume's timeline a drill's report draws. Pure."""

from __future__ import annotations

from recovery.report import Label, Span
from recovery.timeline import Timeline


def spans(shown: Timeline) -> tuple[Span, ...]:
    """Return consistent stretches and gaps, in order of time; ends of folds are points and so are not drawn as stretches."""
    latest_ns = shown.latest.capture_time_ns if shown.latest is not None else 0
    found = [Span(one.first.capture_time_ns, one.last.capture_time_ns) for one in shown.stretches]
    for gap in shown.gaps:
        found.append(Span(gap.begun_at_ns, gap.ended_at_ns or max(latest_ns, gap.begun_at_ns), gap.reason))
    return tuple(sorted(found, key=lambda span: (span.begin_ns, span.end_ns)))


def labels(shown: Timeline) -> tuple[Label, ...]:
    """Return the bookmarks that can be restored."""
    return tuple(Label(one.moment.capture_time_ns, one.label) for one in shown.bookmarks if one.offered)
