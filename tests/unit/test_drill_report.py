"""The report of a drill in its four forms: each says the same, and holds whatever a check may print."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from recovery.bisection import Verdict
from recovery.report import Answer, CheckResult, DrillReport, Label, PointResult, SetUp, Span, facts
from recovery.report_html import html
from recovery.report_junit import junit
from recovery.report_text import text
from stream.position import Position

NOW_NS = 1_700_000_000_000_000_000
HOSTILE = "</pre><script>alert('&\"')</script>]]> \x00\x1b[31m \udc80 ünï"


def point(sequence: int, verdict: Verdict = Verdict.GOOD, why: str = "flush", said: str = "") -> PointResult:
    code = {Verdict.GOOD: 0, Verdict.BAD: 1, Verdict.UNKNOWN: 125}[verdict]
    check = CheckResult("e2fsck -fn {device}", verdict, code, False, 0.25, said)
    return PointResult(Position(1, sequence), NOW_NS + sequence * 10**9, why, SetUp(0.2, 0.01, 0.1, 0.2), (check,))


def drill(*points: PointResult, answer: Answer | None = None) -> DrillReport:
    spans = (Span(NOW_NS, NOW_NS + 50 * 10**9), Span(NOW_NS + 50 * 10**9, NOW_NS + 60 * 10**9, "overflow <&>"))
    labels = tuple(Label(NOW_NS + index * 10**9, f"label {index} <b>") for index in range(40))
    mode = "bisect" if answer else "every-flush"
    return DrillReport("db", mode, "10 to 20", NOW_NS, 12.5, points, answer, spans, labels)


class Page(HTMLParser):
    """Collect the tags of a page, and prove that they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_all_good() -> None:
    report = drill(point(1), point(2))
    assert report.passed and facts(report)["passed"] and facts(report)["rto_s"] == 0.51
    assert text(report).splitlines()[-1].startswith("db: all good: 2 good in 12.5 s; usable within 0.51 s")
    suite = ElementTree.fromstring(junit(report)).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "0")


@pytest.mark.parametrize("said", [HOSTILE, "plain"])
def test_a_bad_and_an_unknown_point(said: str) -> None:
    report = drill(point(1), point(2, Verdict.BAD, said=said), point(3, Verdict.UNKNOWN, said=said))
    assert not report.passed
    json.dumps(facts(report))
    assert "NOT GOOD: 1 good, 1 bad, 1 unknown" in text(report)
    suite = ElementTree.fromstring(junit(report)).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    page = Page(html(report))
    assert "script" not in page.tags and page.text.count("</pre><script>") == (2 if said == HOSTILE else 0)
    assert not [value for name, value in page.attributes if name in ("src", "href") or (value or "").startswith("http://example")]
    assert not re.search(r"url\((?!#)", html(report)), "nothing is loaded from elsewhere"


def test_a_point_that_did_not_open_is_bad() -> None:
    broken = PointResult(Position(1, 7), NOW_NS, "flush", None, (), "A segment is damaged: v1/L0/x <y>")
    report = drill(point(1), broken)
    assert not report.passed and broken.verdict is Verdict.BAD
    assert "A segment is damaged" in text(report) and "A segment is damaged" in Page(html(report)).text
    assert ElementTree.fromstring(junit(report)).find("testsuite").get("failures") == "1"


def test_a_bisection_passes_when_it_found_a_good_point() -> None:
    good, bad = point(4), point(5, Verdict.BAD)
    report = drill(point(9, Verdict.BAD), good, bad, answer=Answer(good, bad, True))
    assert report.passed and facts(report)["last_good"]["position"] == str(Position(1, 4))
    assert text(report).splitlines()[-1].startswith(f"db: the last good point is {Position(1, 4)}")
    suite = ElementTree.fromstring(junit(report)).find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")
    page = Page(html(report))
    assert "last good" in page.text and "first bad" in page.text and page.tags.count("circle") == 3
    none = drill(bad, answer=Answer(None, bad, True))
    assert not none.passed and "no good point" in text(none)
    assert ElementTree.fromstring(junit(none)).find("testsuite").get("failures") == "1"
    assert "nothing is bad" in text(drill(good, answer=Answer(good, None, True)))
    assert "could not be judged" in text(drill(good, answer=Answer(good, bad, False)))


def test_an_empty_drill_is_no_success() -> None:
    report = DrillReport("db", "every-flush", "", NOW_NS, 0.0, ())
    assert not report.passed and "no point" in text(report)
    assert "<svg" not in html(report)
