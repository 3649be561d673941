"""The cache of jars, with a Maven that a test writes: fetched once, again after damage, one fetch for two callers."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from hostoffload.broker.archive import ClassArchive
from hostoffload.broker.jars import KafkaJars, cache_dir
from hostoffload.broker.java_broker import java_version, missing
from stream.errors import ConfigError, RetryError

# Counts its calls, and fills -DoutputDirectory=... with two files.
MAVEN = """#!/bin/sh
echo call >>"$CALLS"
for word; do case $word in -DoutputDirectory=*) out=${word#*=} ;; esac; done
echo one >"$out/a.jar"; echo two >"$out/b.jar"
"""


def install(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with the fake Maven first; the file lists its calls."""
    install(tmp_path / "bin", "mvn", MAVEN)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def count(calls: Path) -> int:
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def test_jars_are_fetched_once_and_said(tmp_path: Path, calls: Path) -> None:
    said: list[str] = []
    jars = KafkaJars(tmp_path / "cache")
    assert not jars.complete()
    jars.ensure(said.append, 5)
    KafkaJars(tmp_path / "cache").ensure(said.append, 5)
    assert jars.complete()
    assert (count(calls), len(said)) == (1, 1)
    assert sorted(path.name for path in jars.libs.iterdir()) == ["a.jar", "b.jar"]


@pytest.mark.parametrize("damage", ["marker", "shorter", "gone", "more"])
def test_a_damaged_or_interrupted_fetch_is_done_again(tmp_path: Path, calls: Path, damage: str) -> None:
    jars = KafkaJars(tmp_path / "cache")
    jars.ensure(print, 5)
    match damage:
        case "marker":
            (jars.folder / "complete.json").unlink()
        case "shorter":
            (jars.libs / "a.jar").write_text("")
        case "gone":
            (jars.libs / "b.jar").unlink()
        case "more":
            (jars.libs / "old.jar").write_text("of another version")
    assert not jars.complete()
    jars.ensure(print, 5)
    assert jars.complete()
    assert count(calls) == 2
    assert sorted(path.name for path in jars.libs.iterdir()) == ["a.jar", "b.jar"]


def test_two_callers_at_once_fetch_once(tmp_path: Path, calls: Path) -> None:
    callers = [threading.Thread(target=KafkaJars(tmp_path / "cache").ensure, args=(print, 30)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert KafkaJars(tmp_path / "cache").complete()
    assert count(calls) == 1


def test_another_list_of_jars_has_another_folder(tmp_path: Path) -> None:
    (tmp_path / "other.xml").write_text("<project/>")
    assert KafkaJars(tmp_path, tmp_path / "other.xml").folder != KafkaJars(tmp_path).folder


def test_a_maven_that_fails_is_tried_again_and_then_quoted(tmp_path: Path, calls: Path) -> None:
    install(tmp_path / "bin", "mvn", '#!/bin/sh\necho call >>"$CALLS"\nseq 1 100\necho "[ERROR] no route to the repository"\nexit 1\n')
    jars = KafkaJars(tmp_path / "cache")
    with pytest.raises(RetryError) as caught:
        jars.ensure(print, 5)
    said = str(caught.value.facts["said"])
    assert said.endswith("no route to the repository")
    assert "\n50\n" not in said
    assert count(calls) == 2
    assert not jars.complete()


def test_a_machine_without_java_or_maven_is_told_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    jars = KafkaJars(tmp_path / "cache")
    assert missing(jars) == "Java is not installed"
    install(tmp_path / "bin", "java", '#!/bin/sh\necho \'openjdk version "11.0.2" 2019-01-15\' >&2\n')
    assert missing(jars) == "Java is version 11, Kafka needs 17"
    install(tmp_path / "bin", "java", '#!/bin/sh\necho \'openjdk version "21" 2023-09-19\' >&2\n')
    assert missing(jars) == "Maven (mvn) is not installed"
    install(tmp_path / "bin", "mvn", MAVEN)
    assert missing(jars) is None


def test_maven_is_not_missed_once_the_jars_are_there(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars = KafkaJars(tmp_path / "cache")
    jars.ensure(print, 5)
    install(tmp_path / "only", "java", '#!/bin/sh\necho \'openjdk version "17.0.15" 2025-04-15\' >&2\n')
    monkeypatch.setenv("PATH", str(tmp_path / "only"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert missing(jars) is None


@pytest.mark.parametrize(("told", "version"), [("1.8.0_412", 8), ("17", 17), ("21.0.3", 21)])
def test_the_version_is_read_from_what_java_prints(tmp_path: Path, told: str, version: int) -> None:
    install(tmp_path / "bin", "java", f"#!/bin/sh\necho 'openjdk version \"{told}\"' >&2\n")
    assert java_version(str(tmp_path / "bin" / "java")) == version


def test_a_java_that_says_nothing_is_told(tmp_path: Path) -> None:
    install(tmp_path / "bin", "java", "#!/bin/sh\n")
    with pytest.raises(ConfigError, match="does not tell"):
        java_version(str(tmp_path / "bin" / "java"))


def test_an_archive_that_cannot_be_made_is_tried_once_and_missed_by_nobody(tmp_path: Path, calls: Path) -> None:
    jars = KafkaJars(tmp_path / "cache")
    jars.ensure(print, 5)
    install(tmp_path / "bin", "java", "#!/bin/sh\nexit 1\n")
    said: list[str] = []
    for _ in range(2):
        archive = ClassArchive(jars, str(tmp_path / "bin" / "java"))
        archive.ensure(said.append)
        assert archive.options() == []
    assert len(said) == 1
    assert jars.complete()


def test_an_archive_belongs_to_one_java(tmp_path: Path, calls: Path) -> None:
    jars = KafkaJars(tmp_path / "cache")
    jars.ensure(print, 5)
    install(tmp_path / "bin", "java", "")
    first = ClassArchive(jars, str(tmp_path / "bin" / "java"))
    first.path.write_text("classes")
    assert f"-XX:SharedArchiveFile={first.path}" in first.options()
    os.utime(tmp_path / "bin" / "java", ns=(1, 1))
    assert ClassArchive(jars, str(tmp_path / "bin" / "java")).options() == []


def test_the_cache_follows_the_variables(tmp_path: Path) -> None:
    assert cache_dir({"HOSTOFFLOAD_CACHE": "/c", "XDG_CACHE_HOME": "/x"}) == Path("/c")
    assert cache_dir({"XDG_CACHE_HOME": "/x"}) == Path("/x/hostoffload")
    assert cache_dir({}) == Path.home() / ".cache" / "hostoffload"
