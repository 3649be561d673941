"""Doorbells: heard once, never blocking, and found again when their folder was made anew."""

from __future__ import annotations

from pathlib import Path

from agent.doorbell import Doorbell


def test_rings_through_two_openings(tmp_path: Path) -> None:
    one, other = Doorbell(tmp_path / "bell"), Doorbell(tmp_path / "bell")
    assert not other.wait(0)
    one.ring()
    one.ring()
    assert other.wait(0)
    assert not other.wait(0)


def test_never_blocks(tmp_path: Path) -> None:
    bell = Doorbell(tmp_path / "bell")
    for _ in range(200_000):
        bell.ring()
    assert bell.wait(0)


def test_is_found_again(tmp_path: Path) -> None:
    stays = Doorbell(tmp_path / "bell")
    (tmp_path / "bell").unlink()
    new = Doorbell(tmp_path / "bell")
    new.ring()
    assert not stays.wait(0)
    stays.renew()
    assert stays.wait(0)
    stays.ring()
    assert new.wait(0)
    stays.renew()
    new.ring()
    assert stays.wait(0)
    assert (tmp_path / "bell").stat().st_mode & 0o777 == 0o600
