"""A drill's report as JUnit XML, for a CI server: a suite for the drill, a case for each check at each point. Pure.

Source of the format: the schema that Jenkins' xUnit plugin and GitLab read (junit-10.xsd). A check that nobody could judge is an `error`.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from recovery.bisection import Verdict
from recovery.point import format_time
from recovery.report import CheckResult, DrillReport, PointResult
from recovery.report_text import outcome, verdict_line

_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # by XML 1.0


def junit(report: DrillReport) -> bytes:
    """Return the document. Of a bisection what counts is its answer: its trials are told, and don't fail."""
    bisects = report.answer is not None
    suite = ElementTree.Element("testsuite", name=f"drill {report.volume} {report.mode}", time=f"{report.seconds:.3f}")
    suite.set("timestamp", format_time(report.began_at_ns)[:19])
    properties = ElementTree.SubElement(suite, "properties")
    told = {"volume": report.volume, "asked": report.asked, "verdict": verdict_line(report), "rto_s": _seconds(report.rto_s)}
    for name, value in told.items():
        ElementTree.SubElement(properties, "property", name=name, value=_clean(value))
    if bisects:
        case = ElementTree.SubElement(suite, "testcase", classname=report.volume, name="bisection", time=f"{report.seconds:.3f}")
        if not report.passed:
            _add(case, "failure", verdict_line(report), "")
        _add(case, "system-out", None, "\n".join(f"{one.verdict} {one.position}" for one in report.points))
    else:
        for point in report.points:
            _add_point(suite, report.volume, point)
    for kind in ("failure", "error"):
        suite.set("errors" if kind == "error" else "failures", str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("tests", str(len(suite.findall("testcase"))))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)


def _add_point(suite: ElementTree.Element, volume: str, point: PointResult) -> None:
    if point.error:
        case = ElementTree.SubElement(suite, "testcase", classname=volume, name=f"{point.position} opens", time="0")
        _add(case, "failure", point.error, "")
    for check in point.checks:
        name = _clean(f"{point.position} {check.check}")
        case = ElementTree.SubElement(suite, "testcase", classname=volume, name=name, time=f"{check.seconds:.3f}")
        if check.verdict is not Verdict.GOOD:
            _add(case, "failure" if check.verdict is Verdict.BAD else "error", outcome(check), "")
        usable = "" if point.set_up is None else f"usable after {point.set_up.rto_s:.3f} s\n"
        _add(case, "system-out", None, f"{point.when}\n{usable}{_said(check)}")


def _add(case: ElementTree.Element, kind: str, message: str | None, text: str) -> None:
    element = ElementTree.SubElement(case, kind)
    if message is not None:
        element.set("message", _clean(message))
    element.text = _clean(text) or None


def _said(check: CheckResult) -> str:
    return check.said.strip()


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _clean(text: str) -> str:
    """Leave out what XML can't say."""
    return _FORBIDDEN.sub("\ufffd", text)
