"""Log lines about clients are few, and tell how many they stand for."""

from __future__ import annotations

import logging

import pytest

import nbd.notices as notices


def test_repeats_are_counted_not_written(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(notices, "monotonic", lambda: now[0])
    monkeypatch.setattr(notices, "_seen", {})
    for number in range(50):
        notices.warn("client_failed", number=number, peer=None)
    assert [record.message for record in caplog.records] == [f"client_failed number={n}" for n in range(notices.LINES_MAX)]
    notices.warn("other_failed")
    assert caplog.records[-1].message == "other_failed"
    now[0] += notices.PERIOD_S + 1
    notices.warn("client_failed", number=50)
    assert caplog.records[-1].message == f"client_failed number=50 suppressed={50 - notices.LINES_MAX}"
    notices.warn("client_failed", number=51)
    assert caplog.records[-1].message == "client_failed number=51"


def test_what_is_normal_is_told_at_info(caplog: pytest.LogCaptureFixture) -> None:
    notices.inform("client_came", peer="unix")
    assert not caplog.records
    caplog.set_level(logging.INFO, "nbd")
    notices.inform("client_came", peer="unix")
    assert caplog.records[-1].message == "client_came peer=unix"
