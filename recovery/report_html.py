"""A drill's report as one HTML page that needs nothing else: style and drawing are inside, there is no script. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from recovery.bisection import Verdict
from recovery.point import format_time
from recovery.report import DrillReport, PointResult
from recovery.report_drawing import drawing
from recovery.report_text import outcome, verdict_line

ROWS_MAX = 5000
_STYLE = """
:root { color-scheme: light dark; --good: #1a7f4b; --bad: #c0362c; --unknown: #b7791f; --line: #8884; --soft: #8881; --sound: #9fd3b6; }
@media (prefers-color-scheme: dark) { :root { --good: #4cc38a; --bad: #ff7b72; --unknown: #e3b341; --sound: #1f5a3c; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } .verdict { font-size: 1.1rem; }
svg { width: 100%; height: auto; margin: 1rem 0; } svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
svg .sound { fill: var(--sound); } svg .gap-back { fill: var(--soft); } svg .gap-line { fill: var(--bad); opacity: .5; }
svg .axis, svg .label { stroke: currentColor; opacity: .5; }
svg circle { stroke: Canvas; stroke-width: 1.5; } svg .answer { stroke-width: 2; }
.good { color: var(--good); } .bad { color: var(--bad); } .unknown { color: var(--unknown); }
svg .good { fill: var(--good); } svg .bad { fill: var(--bad); } svg .unknown { fill: var(--unknown); }
svg line.good { stroke: var(--good); } svg line.bad { stroke: var(--bad); }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
border-bottom: 1px solid var(--line); } td.number { text-align: right; font-variant-numeric: tabular-nums; }
code, pre { font: 13px/1.4 ui-monospace, monospace; }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; white-space: pre-wrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { opacity: .7; } dd { margin: 0; }
"""


def html(report: DrillReport) -> str:
    """Return the page."""
    title = f"Drill of {escape(report.volume)}"
    word = "good" if report.passed else "bad"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
            f"<title>{title}: {word}</title><style>{_STYLE}</style></head><body>",
            f'<h1>{title}</h1><p class="verdict {word}">{escape(verdict_line(report))}</p>',
            drawing(report),
            *_summary(report),
            *_table(report),
            *(f'<p class="bad">{escape(problem)}</p>' for problem in report.problems),
            "</body></html>",
        ]
    )


def _summary(report: DrillReport) -> Iterator[str]:
    told = {
        "Began": format_time(report.began_at_ns),
        "Took": f"{report.seconds:.1f} s",
        "Asked for": report.asked,
        "Points": ", ".join(f"{report.count(verdict)} {verdict}" for verdict in Verdict),
        "Usable within": "" if report.rto_s is None else f"{report.rto_s:.2f} s (RTO, the slowest point)",
    }
    if report.answer is not None:
        told["Last good"], told["First bad"] = _place(report.answer.last_good), _place(report.answer.first_bad)
    yield "<dl>"
    for name, value in told.items():
        yield f"<dt>{name}</dt><dd>{escape(value or '-')}</dd>"
    yield "</dl>"


def _table(report: DrillReport) -> Iterator[str]:
    yield "<table><thead><tr><th>Point<th>Verdict<th>Usable after<th>Checks</tr></thead><tbody>"
    for point in report.points[:ROWS_MAX]:
        usable = "" if point.set_up is None else f"{point.set_up.rto_s:.2f} s"
        yield (
            f'<tr><td><code>{point.position}</code><br>{point.when}<td class="{point.verdict}">{point.verdict}'
            f'<td class="number">{usable}<td>'
        )
        if point.error:
            yield f'<p class="bad">{escape(point.error)}</p>'
        for check in point.checks:
            line = f'<code>{escape(check.check)}</code> <span class="{check.verdict}">{check.verdict}</span>, {escape(outcome(check))}'
            if check.said.strip():
                opened = "" if check.verdict is Verdict.GOOD else " open"
                yield f"<details{opened}><summary>{line}</summary><pre>{escape(check.said.strip())}</pre></details>"
            else:
                yield f"<div>{line}</div>"
        yield "</tr>"
    yield "</tbody></table>"
    if len(report.points) > ROWS_MAX:
        yield f"<p>{len(report.points) - ROWS_MAX} more points are not shown here; --json has them.</p>"


def _place(point: PointResult | None) -> str:
    return "none" if point is None else f"{point.position} ({point.when})"
