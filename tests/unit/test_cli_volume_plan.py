"""What `volume add` refuses before it changes anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostoffload.volume_plan import VolumePlan, check_existing, check_free, make_replica, plan_volume, replicas_with
from stream.control import Replica, VolumeDeclaration
from stream.errors import ConfigError, FencedError

SIZE_BYTES = 1 << 16


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    path.write_bytes(bytes(SIZE_BYTES))
    return path


def declared(name: str, source: Path, replica: Path, *, agent: str = "me", state: str = "active") -> VolumeDeclaration:
    return VolumeDeclaration(name, agent, str(source), SIZE_BYTES, state=state, replicas=(Replica("target", str(replica)),))


def test_an_absent_replica_is_made_sparse_and_private(source: Path, tmp_path: Path) -> None:
    plan = plan_volume(source, tmp_path / "replica.img")
    assert plan == VolumePlan(str(source), str(tmp_path / "replica.img"), SIZE_BYTES, True)
    make_replica(plan)
    made = (tmp_path / "replica.img").stat()
    assert (made.st_size, made.st_blocks, made.st_mode & 0o777) == (SIZE_BYTES, 0, 0o600)


def test_a_replica_that_came_in_between_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    plan = plan_volume(source, tmp_path / "replica.img")
    (tmp_path / "replica.img").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="can't be made"):
        make_replica(plan)
    assert (tmp_path / "replica.img").read_bytes() == b"precious"


def test_relative_paths_become_absolute(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_volume(Path("source.img"), Path("replica.img"))
    assert (plan.source, plan.replica) == (str(source), str(tmp_path / "replica.img"))


def test_an_existing_replica_of_the_right_size_is_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "replica.img").write_bytes(bytes(SIZE_BYTES))
    assert not plan_volume(source, tmp_path / "replica.img").replica_absent


@pytest.mark.parametrize("size", [0, SIZE_BYTES - 1, SIZE_BYTES + 1])
def test_a_replica_of_another_size_is_refused(source: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "replica.img").write_bytes(bytes(size))
    with pytest.raises(ConfigError, match=f"has {size} bytes, the source {SIZE_BYTES}"):
        plan_volume(source, tmp_path / "replica.img")


@pytest.mark.parametrize("make", [os.link, os.symlink])
def test_the_source_by_another_name_is_no_replica(source: Path, tmp_path: Path, make) -> None:
    make(source, tmp_path / "replica.img")
    with pytest.raises(ConfigError, match="same volume"):
        plan_volume(source, tmp_path / "replica.img")
    with pytest.raises(ConfigError, match="same volume"):
        plan_volume(source, source)


def test_wrong_sources_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    for path, told in (
        ("empty", "is empty"),
        ("absent", "No such file"),
        ("fifo", "neither a regular file"),
        (".", "neither a regular file"),
    ):
        with pytest.raises(ConfigError, match=told) as refused:
            plan_volume(tmp_path / path, tmp_path / "replica.img")
        assert refused.value.hint
    assert not (tmp_path / "replica.img").exists()


def test_a_replica_needs_its_folder(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder of the replica"):
        plan_volume(source, tmp_path / "absent" / "replica.img")


def test_what_another_volume_uses_is_refused(source: Path, tmp_path: Path) -> None:
    replica, other = tmp_path / "replica.img", tmp_path / "other.img"
    other.write_bytes(bytes(SIZE_BYTES))
    os.link(source, tmp_path / "alias.img")
    plan = plan_volume(source, replica)
    for one, role in (
        (declared("a", source, other), "source"),
        (declared("a", tmp_path / "alias.img", other), "source"),
        (declared("a", other, source), "replica"),
        (declared("a", other, replica), "replica"),
        (declared("a", replica, other), "source"),
    ):
        with pytest.raises(ConfigError, match=f"is the {role} of volume 'a' already"):
            check_free("db", plan, [one])
    check_free("db", plan, [declared("db", source, replica), declared("gone", source, replica, state="removed")])


def test_the_same_declaration_again_is_known(source: Path, tmp_path: Path) -> None:
    plan = plan_volume(source, tmp_path / "replica.img")
    same = declared("db", source, tmp_path / "replica.img")
    assert check_existing("db", plan, same, "me", take_over=False)
    assert not check_existing("db", plan, None, "me", take_over=False)
    assert not check_existing("db", plan, declared("db", source, tmp_path / "x", state="removed"), "me", take_over=False)


def test_another_target_of_a_volume_is_added_to_it(source: Path, tmp_path: Path) -> None:
    known = declared("db", source, tmp_path / "replica.img")
    late = plan_volume(source, tmp_path / "late.img", target="late", delay_s=60)
    assert late.wanted == Replica("late", str(tmp_path / "late.img"), 60)
    assert check_existing("db", late, known, "me", take_over=False) == known
    check_free("db", late, [known])


def test_the_delay_of_a_replica_may_be_changed(source: Path, tmp_path: Path) -> None:
    known = declared("db", source, tmp_path / "replica.img")
    later = plan_volume(source, tmp_path / "replica.img", delay_s=5)
    assert check_existing("db", later, known, "me", take_over=False) == known and later.wanted not in known.replicas


def test_two_targets_never_share_a_replica(source: Path, tmp_path: Path) -> None:
    (tmp_path / "replica.img").write_bytes(bytes(SIZE_BYTES))
    os.link(tmp_path / "replica.img", tmp_path / "alias.img")
    for path in ("replica.img", "alias.img"):
        plan = plan_volume(source, tmp_path / path, target="late")
        with pytest.raises(ConfigError, match="is that of the target 'target' already"):
            check_free("db", plan, [declared("db", source, tmp_path / "replica.img")])


def test_a_replica_on_another_machine_is_not_looked_for_here(source: Path) -> None:
    plan = plan_volume(source, Path("/on/their/host"), target="far", here=False)
    assert (plan.replica, plan.replica_absent) == ("/on/their/host", False)
    with pytest.raises(ConfigError, match="on another machine"):
        plan_volume(source, Path("replica.img"), target="far", here=False)


def test_a_paused_volume_is_resumed_not_added(source: Path, tmp_path: Path) -> None:
    plan = plan_volume(source, tmp_path / "replica.img")
    with pytest.raises(ConfigError, match="is paused") as refused:
        check_existing("db", plan, declared("db", source, tmp_path / "replica.img", state="paused"), "me", take_over=False)
    assert "volume resume db" in refused.value.hint


def test_the_name_of_another_volume_is_refused(source: Path, tmp_path: Path) -> None:
    plan = plan_volume(source, tmp_path / "replica.img")
    for take_over in (False, True):
        with pytest.raises(ConfigError, match="There is a volume 'db' already"):
            check_existing("db", plan, declared("db", source, tmp_path / "elsewhere"), "me", take_over=take_over)
        with pytest.raises(ConfigError, match="There is a volume 'db' already"):
            check_existing("db", plan, declared("db", tmp_path / "other", tmp_path / "replica.img"), "me", take_over=take_over)


def test_a_volume_of_another_agent_needs_the_operators_word(source: Path, tmp_path: Path) -> None:
    plan = plan_volume(source, tmp_path / "replica.img")
    theirs = declared("db", Path("/on/their/host"), tmp_path / "replica.img", agent="them")
    with pytest.raises(FencedError, match="the agent 'them'") as refused:
        check_existing("db", plan, theirs, "me", take_over=False)
    assert "--take-over" in refused.value.hint
    assert not check_existing("db", plan, theirs, "me", take_over=True)


@pytest.mark.parametrize(("asked_s", "kept_s"), [(None, 3600.0), (0.0, 0.0), (60.0, 60.0)])
def test_a_declared_delay_stays_unless_another_is_asked_for(source: Path, tmp_path: Path, asked_s: float | None, kept_s: float) -> None:
    """Also when the volume is taken over: what the replica holds back would be applied at once."""
    others = Replica("prompt", str(tmp_path / "p.img"))
    late = Replica("late", str(tmp_path / "late.img"), 3600.0)
    existing = VolumeDeclaration("v", "gone", str(source), SIZE_BYTES, replicas=(late, others))
    plan = plan_volume(source, tmp_path / "late.img", target="late", delay_s=asked_s or 0.0)
    assert replicas_with(existing, plan, asked_s) == (others, Replica("late", str(tmp_path / "late.img"), kept_s))
