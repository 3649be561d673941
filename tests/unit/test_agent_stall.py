"""Why nothing is acknowledged is found out and stated, and forgotten when something is."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import publication as publication_module
from agent import stall as stall_module
from agent.stall import STALLED_S, StallWatch
from stream.config import KafkaConfig
from stream.errors import ConfigError, HostoffloadError, RetryError
from stream.topics import TopicCondition
from tests.publication_parts import Bench, FakeKafka, install

WELL = TopicCondition("id-1", True, 1, 1, 4 << 20)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class AskedTopics:
    """An admin client that answers what the test says."""

    made = 0

    def __init__(self, answers: list[TopicCondition | HostoffloadError | None]) -> None:
        self._answers = answers

    def condition(self, _: str) -> TopicCondition | None:
        answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        if isinstance(answer, HostoffloadError):
            raise answer
        return answer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(publication_module.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Bench:
    kafka = FakeKafka()
    install(kafka, monkeypatch)
    return Bench(tmp_path, kafka)


def watch(bench: Bench, patch: pytest.MonkeyPatch, *answers: TopicCondition | HostoffloadError | None) -> StallWatch:
    told = list(answers)
    patch.setattr(stall_module, "Topics", lambda _: AskedTopics(told))
    return StallWatch(KafkaConfig(), lambda: [bench.publication])


def stall(bench: Bench, clock: Clock) -> None:
    bench.flushes(1)
    bench.publication.publish()
    clock.now_s += STALLED_S


class TestStalled:
    def test_only_what_is_on_its_way_and_not_acknowledged(self, bench: Bench, clock: Clock) -> None:
        clock.now_s += 60
        assert bench.publication.stalled_s == 0
        bench.flushes(2)
        bench.publication.publish()
        bench.flushes(1)
        bench.publication.publish()
        clock.now_s += 3
        assert bench.publication.stalled_s == 3
        bench.producer.deliver()
        assert bench.publication.stalled_s == 0
        clock.now_s += 2
        assert bench.publication.stalled_s == 2
        bench.producer.deliver()
        clock.now_s += 60
        assert bench.publication.stalled_s == 0

    def test_nothing_is_asked_while_all_is_well(self, bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.flushes(1)
        bench.publication.publish()
        clock.now_s += STALLED_S - 0.1
        watch(bench, monkeypatch, ZeroDivisionError).look()
        assert bench.publication.error is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (TopicCondition("id-1", False, 0, 1, 4 << 20), "Topic ho.v.writes has no leader. The brokers that hold it are down"),
        (TopicCondition("id-1", True, 1, 2, 4 << 20), "Topic ho.v.writes has 1 replica in sync and needs 2. Start the brokers"),
        (WELL, "Kafka acknowledges nothing of volume v. See whether the broker runs"),
        (RetryError("The broker does not answer", hint="Check that it runs."), "The broker does not answer. Check that it runs."),
        (ConfigError("Topic ho.v.writes can't be described: authorization failed", hint="Check the rights."), "authorization failed"),
    ],
)
def test_the_cause_is_stated_until_something_is_acknowledged(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch, answer: TopicCondition | HostoffloadError, told: str
) -> None:
    stall(bench, clock)
    watch(bench, monkeypatch, answer).look()
    assert told in str(bench.publication.error)
    assert not bench.publication.look_again.is_set()
    bench.producer.deliver()
    assert bench.publication.error is None


@pytest.mark.parametrize("answer", [None, TopicCondition("id-2", True, 1, 1, 4 << 20)])
def test_a_topic_that_is_another_one_is_looked_at_anew(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch, answer: TopicCondition | None
) -> None:
    stall(bench, clock)
    watch(bench, monkeypatch, answer).look()
    assert bench.publication.look_again.is_set()
    producers = len(bench.kafka.producers)

    def poll(producer: object) -> None:
        if len(bench.kafka.producers) == producers + 1:
            bench.publication.look_again.set()
        else:
            bench.publication._stop.set()

    bench.kafka.on_poll = poll
    bench.publication._run()
    assert len(bench.kafka.producers) == producers + 2


def test_an_acknowledgement_that_came_meanwhile_wins(bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stall(bench, clock)
    monkeypatch.setattr(AskedTopics, "condition", lambda *_: (bench.producer.deliver(), WELL)[1])
    watch(bench, monkeypatch, WELL).look()
    assert bench.publication.error is None


def test_a_broker_that_is_away_is_asked_once_for_all(bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stall(bench, clock)
    asked: list[int] = []

    def condition(*_: object) -> TopicCondition:
        asked.append(1)
        raise RetryError("The broker does not answer")

    monkeypatch.setattr(AskedTopics, "condition", condition)
    monkeypatch.setattr(stall_module, "Topics", lambda _: AskedTopics([]))
    StallWatch(KafkaConfig(), lambda: [bench.publication] * 50).look()
    assert len(asked) == 1
    assert bench.publication.error == "The broker does not answer"
