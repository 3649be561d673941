"""Which kind of broker is used, for every combination that an operator can meet."""

from __future__ import annotations

import pytest

from hostoffload.broker.plan import Plan, Wish, plan
from stream.errors import ConfigError


class FakeTools:
    """A machine that lacks what it is told; it notes who asked, because asking for Docker may pull an image."""

    def __init__(self, **lacking: str) -> None:
        self.lacking = lacking
        self.asked: list[str] = []

    def lacks(self, kind: str) -> str | None:
        self.asked.append(kind)
        return self.lacking.get(kind)


def decide(wish: Wish, tools: FakeTools | None = None) -> tuple[Plan, list[str]]:
    said: list[str] = []
    return plan(wish, tools or FakeTools(), said.append), said


def test_a_named_broker_wins_and_nothing_is_asked() -> None:
    tools = FakeTools()
    decision, said = decide(Wish(bootstrap="k:9092", recorded="jars"), tools)
    assert (decision.kind, decision.bootstrap, tools.asked, said) == ("external", "k:9092", [], [])


def test_docker_comes_first_where_it_works() -> None:
    tools = FakeTools()
    decision, said = decide(Wish(), tools)
    assert (decision.kind, tools.asked, said) == ("docker", ["docker"], [])


def test_without_docker_the_jars_and_a_line_that_says_why() -> None:
    decision, said = decide(Wish(), FakeTools(docker="Docker's engine does not answer"))
    assert decision.kind == "jars"
    assert said == ["broker: jars, because docker: Docker's engine does not answer"]


def test_nothing_works_is_one_sentence_with_both_reasons_and_a_hint() -> None:
    with pytest.raises(ConfigError) as caught:
        decide(Wish(), FakeTools(docker="Docker is not installed", jars="Java is not installed"))
    assert caught.value.sentence == "No Kafka can be started here (docker: Docker is not installed; jars: Java is not installed)."
    for word in ("openjdk-17-jre-headless", "maven", "docker.io", "--bootstrap"):
        assert word in caught.value.hint


@pytest.mark.parametrize("kind", ["docker", "jars"])
def test_a_forced_kind_is_used_or_refused_but_never_replaced(kind: str) -> None:
    tools = FakeTools()
    decision, said = decide(Wish(force=kind, recorded="external", recorded_bootstrap="k:1"), tools)
    assert (decision.kind, tools.asked, said) == (kind, [kind], [])
    with pytest.raises(ConfigError, match="nothing there"):
        decide(Wish(force=kind), FakeTools(**{kind: "nothing there"}))


def test_what_the_folder_used_before_comes_first() -> None:
    tools = FakeTools()
    assert decide(Wish(recorded="jars"), tools)[0].kind == "jars"
    assert tools.asked == ["jars"]
    decision, said = decide(Wish(recorded="jars"), FakeTools(jars="Java is not installed"))
    assert decision.kind == "docker"
    assert "Java is not installed" in said[0]


def test_an_external_broker_used_before_is_used_again() -> None:
    decision, _ = decide(Wish(recorded="external", recorded_bootstrap="k:9092"))
    assert (decision.kind, decision.bootstrap) == ("external", "k:9092")


def test_a_running_broker_is_kept_without_asking_for_tools() -> None:
    tools = FakeTools(jars="Java is not installed", docker="Docker is not installed")
    for wish in (
        Wish(recorded="jars", recorded_bootstrap="127.0.0.1:1", running="127.0.0.1:1"),
        Wish(recorded="jars", recorded_bootstrap="127.0.0.1:1", running="127.0.0.1:1", force="jars"),
        Wish(recorded="jars", recorded_bootstrap="127.0.0.1:1", running="127.0.0.1:1", bootstrap="127.0.0.1:1"),
    ):
        assert decide(wish, tools)[0].kind == "jars"
    assert tools.asked == []


@pytest.mark.parametrize("asked", [{"bootstrap": "other:9092"}, {"force": "docker"}])
def test_a_running_broker_is_not_left_behind_for_another(asked: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        decide(Wish(recorded="jars", recorded_bootstrap="127.0.0.1:1", running="127.0.0.1:1", **asked))
    assert "broker stop" in caught.value.hint


def test_the_variable_names_a_broker_but_yields_to_an_option_a_forced_kind_and_a_running_one() -> None:
    assert decide(Wish(environment="k:9092", recorded="jars"))[0].bootstrap == "k:9092"
    assert decide(Wish(environment="k:9092", bootstrap="other:1"))[0].bootstrap == "other:1"
    assert decide(Wish(environment="k:9092", force="jars"))[0].kind == "jars"
    decision, said = decide(Wish(environment="k:9092", recorded="jars", running="127.0.0.1:1"))
    assert decision.kind == "jars"
    assert "KAFKA_BOOTSTRAP is not used" in said[0]
    assert decide(Wish(environment="127.0.0.1:1", recorded="jars", running="127.0.0.1:1"))[1] == []


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="not both"):
        decide(Wish(bootstrap="k:9092", force="jars"))
    with pytest.raises(ConfigError, match="docker or jars"):
        decide(Wish(force="podman"))
