"""The timeline of a drill as one SVG: what of the history is consistent, where gaps are, bookmarks, every point that was tried. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from recovery.point import format_time
from recovery.report import NS_PER_S, DrillReport, PointResult

WIDTH, HEIGHT = 960, 150
LEFT, RIGHT = 20, 940
BAR_TOP, BAR_HEIGHT = 56, 22
AXIS_TOP = 100
TICKS = 5
DRAWN_MAX = 2000
LABELS_MAX = 24


def drawing(report: DrillReport) -> str:
    """Return the SVG element; empty if there is nothing to draw."""
    times = [point.capture_time_ns for point in report.points if point.capture_time_ns]
    times += [edge for span in report.spans for edge in (span.begin_ns, span.end_ns)]
    if not times:
        return ""
    low, high = min(times), max(times)
    scale = _Scale(low, max(high, low + 1))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Timeline of {escape(report.volume)}" xmlns="http://www.w3.org/2000/svg">',
        '<defs><pattern id="gap" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="6" height="6" class="gap-back"/><rect width="3" height="6" class="gap-line"/></pattern></defs>',
        *_spans(report, scale),
        *_labels(report, scale),
        *_points(report, scale),
        *_axis(scale),
        "</svg>",
    ]
    return "\n".join(parts)


class _Scale:
    """Where a time lies across the drawing."""

    def __init__(self, low_ns: int, high_ns: int) -> None:
        self.low_ns = low_ns
        self.high_ns = high_ns

    def x(self, time_ns: int) -> float:
        share = (time_ns - self.low_ns) / (self.high_ns - self.low_ns)
        return round(LEFT + min(max(share, 0.0), 1.0) * (RIGHT - LEFT), 1)


def _spans(report: DrillReport, scale: _Scale) -> Iterator[str]:
    for span in report.spans[:DRAWN_MAX]:
        begin, end = scale.x(span.begin_ns), scale.x(span.end_ns)
        what = f"gap: {span.gap}" if span.gap else "consistent"
        told = escape(f"{what}\n{format_time(span.begin_ns)} to {format_time(span.end_ns)}")
        paint = 'fill="url(#gap)"' if span.gap else 'class="sound"'
        width = max(end - begin, 1)
        yield f'<rect x="{begin}" y="{BAR_TOP}" width="{width:.1f}" height="{BAR_HEIGHT}" {paint}><title>{told}</title></rect>'


def _labels(report: DrillReport, scale: _Scale) -> Iterator[str]:
    for index, label in enumerate(report.labels[-LABELS_MAX:]):
        x, y = scale.x(label.time_ns), 16 + 14 * (index % 3)
        anchor = "end" if x > (LEFT + RIGHT) / 2 else "start"
        shift = -5 if anchor == "end" else 5
        yield f'<line x1="{x}" y1="{y}" x2="{x}" y2="{BAR_TOP}" class="label"/>'
        yield f'<text x="{x + shift}" y="{y + 4}" text-anchor="{anchor}">{escape(label.text)}</text>'


def _points(report: DrillReport, scale: _Scale) -> Iterator[str]:
    middle = BAR_TOP + BAR_HEIGHT / 2
    for point in [point for point in report.points if point.when][:DRAWN_MAX]:
        told = escape(f"{point.verdict}: {point.position}\n{point.when}")
        x = scale.x(point.capture_time_ns)
        yield f'<circle cx="{x}" cy="{middle}" r="5" class="{point.verdict}"><title>{told}</title></circle>'
    if report.answer is not None:
        yield from _answer(report.answer.last_good, "last good", -4, "end", scale)
        yield from _answer(report.answer.first_bad, "first bad", 4, "start", scale)


def _answer(point: PointResult | None, told: str, shift: int, anchor: str, scale: _Scale) -> Iterator[str]:
    if point is None:
        return
    x = scale.x(point.capture_time_ns)
    anchor = "start" if x < LEFT + 80 else "end" if x > RIGHT - 80 else anchor
    yield f'<line x1="{x}" y1="{BAR_TOP - 6}" x2="{x}" y2="{BAR_TOP + BAR_HEIGHT + 8}" class="{point.verdict} answer"/>'
    yield f'<text x="{x + shift}" y="{BAR_TOP + BAR_HEIGHT + 14}" text-anchor="{anchor}" class="{point.verdict}">{told}</text>'


def _axis(scale: _Scale) -> Iterator[str]:
    yield f'<line x1="{LEFT}" y1="{AXIS_TOP}" x2="{RIGHT}" y2="{AXIS_TOP}" class="axis"/>'
    range_s = (scale.high_ns - scale.low_ns) / NS_PER_S
    digits = 6 if range_s < 1 else 3 if range_s < 60 else 0
    for index in range(TICKS):
        time_ns = scale.low_ns + (scale.high_ns - scale.low_ns) * index // (TICKS - 1)
        x = scale.x(time_ns)
        anchor = "start" if index == 0 else "end" if index == TICKS - 1 else "middle"
        day, _, clock = format_time(time_ns)[:-1].partition("T")
        clock, _, fraction = clock.partition(".")
        shown = f"{clock}.{fraction[:digits]}" if digits else clock
        yield f'<line x1="{x}" y1="{AXIS_TOP}" x2="{x}" y2="{AXIS_TOP + 5}" class="axis"/>'
        yield f'<text x="{x}" y="{AXIS_TOP + 20}" text-anchor="{anchor}">{shown}</text>'
        if index in (0, TICKS - 1):
            yield f'<text x="{x}" y="{AXIS_TOP + 36}" text-anchor="{anchor}">{day} UTC</text>'
