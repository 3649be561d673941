"""The timeline as people read it: a drawing, by days if it is long, and a table of what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hostoffload.cli.status_view import duration
from recovery.point import NS_PER_S, format_time
from recovery.timeline import FoldEnd, Gap, Timeline

DAY_NS = 86_400 * NS_PER_S
CELLS = 96
CELLS_MIN = 24
LABEL_CHARACTERS = 12
DAYS_MAX = 31
ROWS_MAX = 60
ROUNDS_MAX = 3  # verification goes on all the time: more of them would hide the rest
EVERY_WRITE, SOME, SINGLE, GAP, NOTHING = "█", "▓", "•", "░", " "
BOOKMARK, PROVED = "▲", "✓"
LEGEND = f"{EVERY_WRITE} every write  {SOME} in part  {SINGLE} single points  {GAP} gap  {BOOKMARK} bookmark  {PROVED} verified"
LEVELS = {1: "5 min", 2: "1 h", 3: "1 d", 4: "snapshot"}
_Row = tuple[int, str, str, str, str]  # when, what, from, to, more


def view(found: Timeline, width: int) -> RenderableType:
    """Return drawing and table; `width` in characters is the drawing's; the table takes what it needs."""
    cells = max(CELLS_MIN, min(CELLS, width - LABEL_CHARACTERS - 1))
    parts: list[RenderableType] = []
    if found.latest is None:
        parts.append(Text(f"{found.volume} has no recovery point here"))
    else:
        parts += [Text(line) for line in drawn(found, cells)]
        parts.append(Text(LEGEND))
        parts.append(Text(""))
    parts.append(_table(found))
    for path, sentence in sorted(found.damaged.items()):
        parts.append(Text(f"damaged: {path}: {sentence}"))
    return Group(*parts)


def drawn(found: Timeline, cells: int) -> Iterator[str]:
    """Yield the lines of the drawing: one for all, or one a day, the newest of them, each with its marks below."""
    assert found.first is not None and found.latest is not None
    begin, end = _span(found)
    if end - begin <= 1.5 * DAY_NS:
        yield from _line(found, begin, end + 1, cells, "")
        left, right = format_time(begin)[:19], format_time(end)[:19]
        yield f"{'':{LABEL_CHARACTERS}} {left}{right:>{max(0, cells - len(left))}}"
        return
    first_day, last_day = begin // DAY_NS, end // DAY_NS
    shown = range(max(first_day, last_day - DAYS_MAX + 1), last_day + 1)
    if shown.start > first_day:
        yield f"(before {format_time(shown.start * DAY_NS)[:10]}: see --to and --json)"
    for day in shown:
        yield from _line(found, day * DAY_NS, (day + 1) * DAY_NS, cells, format_time(day * DAY_NS)[:10])


def _span(found: Timeline) -> tuple[int, int]:
    times = [one.begun_at_ns for one in found.gaps] + [one.ended_at_ns for one in found.gaps if one.ended_at_ns is not None]
    assert found.first is not None and found.latest is not None
    times += [found.first.capture_time_ns, found.latest.capture_time_ns]
    return min(times), max(times)


def _line(found: Timeline, begin: int, end: int, cells: int, label: str) -> Iterator[str]:
    """Yield the line of one span of time, and one with its marks if there are any."""
    span = _Span(begin, end, cells)
    for gap in found.gaps:
        for cell in span.range(gap.begun_at_ns, end if gap.ended_at_ns is None else gap.ended_at_ns):
            span.line[cell] = GAP
    for one in found.fold_ends:
        for cell in span.range(one.moment.capture_time_ns, one.moment.capture_time_ns):
            span.line[cell] = SINGLE
    for stretch in found.stretches:
        for cell in span.range(stretch.first.capture_time_ns, stretch.last.capture_time_ns):
            span.line[cell] = EVERY_WRITE if span.line[cell] in (NOTHING, EVERY_WRITE) else SOME
    yield f"{label:{LABEL_CHARACTERS}} {''.join(span.line)}"
    told = [(proof.last, PROVED) for proof in found.rounds if proof.complete]
    told += [(bookmark.moment, BOOKMARK) for bookmark in found.bookmarks]
    marks = [NOTHING] * cells
    for moment, mark in told:
        for cell in span.range(moment.capture_time_ns, moment.capture_time_ns):
            marks[cell] = mark
    if any(mark != NOTHING for mark in marks):
        yield f"{'':{LABEL_CHARACTERS}} {''.join(marks)}"


class _Span:
    """A span of time `[begin, end)` as a row of cells."""

    def __init__(self, begin: int, end: int, cells: int) -> None:
        self.line = [NOTHING] * cells
        self._begin = begin
        self._end = end

    def range(self, first: int, last: int) -> range:
        """Return the cells of the times from first to last, both inside; none if they do not touch the span."""
        first, last = max(first, self._begin), min(last, self._end - 1)
        return range(self._cell(first), self._cell(last) + 1) if first <= last else range(0)

    def _cell(self, time_ns: int) -> int:
        return (time_ns - self._begin) * len(self.line) // (self._end - self._begin)


def _table(found: Timeline) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("TIME", "WHAT", "FROM", "TO", ""):
        table.add_column(title, no_wrap=True)
    rows = sorted(_rows(found))
    if len(rows) > ROWS_MAX:
        table.add_row("", f"{len(rows) - ROWS_MAX} older lines: see --to and --json", "", "", "")
    for when, *told in rows[-ROWS_MAX:]:
        table.add_row(format_time(when), *told)
    return table


def _rows(found: Timeline) -> Iterator[_Row]:
    for one in found.stretches:
        lasted = duration((one.last.capture_time_ns - one.first.capture_time_ns) / NS_PER_S)
        more = f"{one.records} records, {one.flushes} flushes, {lasted}"
        yield one.first.capture_time_ns, "every write", str(one.first.position), str(one.last.position), more
    for level, same in groupby(found.fold_ends, key=_level):
        ends = list(same)
        first, last = ends[0].moment, ends[-1].moment
        more = f"{len(ends)} points" if len(ends) > 1 else "1 point"
        yield first.capture_time_ns, f"points each {LEVELS.get(level, level)}", str(first.position), str(last.position), more
    for gap in found.gaps:
        yield gap.begun_at_ns, "gap", str(gap.after), "open" if gap.until is None else str(gap.until), _reason(gap)
    for bookmark in found.bookmarks:
        group = f" of {bookmark.group}" if bookmark.group else ""
        more = f"{bookmark.label}{group}{'' if bookmark.offered else ' (can not be restored any more)'}"
        yield bookmark.moment.capture_time_ns, "bookmark", str(bookmark.moment.position), "", more
    left, shown = found.rounds[:-ROUNDS_MAX], found.rounds[-ROUNDS_MAX:]
    if left:
        complete = sum(one.complete for one in left)
        more = f"{len(left)} rounds, {complete} of them complete"
        yield left[0].first.capture_time_ns, "verification", str(left[0].first.position), str(left[-1].last.position), more
    for proof in shown:
        more = f"{proof.chunks} chunks{'' if proof.complete else ', not complete'}"
        yield proof.first.capture_time_ns, "verification", str(proof.first.position), str(proof.last.position), more


def _level(end: FoldEnd) -> int:
    return end.level


def _reason(gap: Gap) -> str:
    lasted = f", {duration((gap.ended_at_ns - gap.begun_at_ns) / NS_PER_S)}" if gap.ended_at_ns is not None else ""
    return gap.reason + (f": {gap.missing}" if gap.missing else "") + lasted
