"""The client behind `Topics`: one that is not answered is not asked again, because it may have lost all brokers for ever."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream import topics
from stream.config import KafkaConfig
from stream.errors import ResyncError, RetryError
from stream.topics import Topics


class FakeAdmin:
    """Answers, unless it is `lost`; `unknown` topics are not there."""

    made: list[FakeAdmin]
    lost_first = True

    def __init__(self, settings: dict) -> None:
        assert settings["bootstrap.servers"] == "nobody:1"
        self.lost = FakeAdmin.lost_first and not FakeAdmin.made
        self.asked = 0
        FakeAdmin.made.append(self)

    def list_topics(self, timeout: float) -> SimpleNamespace:
        self.asked += 1
        if self.lost:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return SimpleNamespace(topics={"ho.control": None})

    def describe_topics(self, wanted: object, request_timeout: float) -> dict[str, Future]:
        self.asked += 1
        future: Future = Future()
        if self.lost:
            return {"ho.control": future}  # never done
        future.set_exception(KafkaException(KafkaError(KafkaError.OFFSET_OUT_OF_RANGE)))
        return {"ho.control": future}


@pytest.fixture(autouse=True)
def admin(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeAdmin.made = []
    monkeypatch.setattr(FakeAdmin, "lost_first", True)
    monkeypatch.setattr(topics, "AdminClient", FakeAdmin)
    monkeypatch.setattr(topics, "ADMIN_TIMEOUT_S", 0.0)


def test_a_client_that_lost_its_brokers_is_replaced() -> None:
    asked = Topics(KafkaConfig(bootstrap="nobody:1"))
    with pytest.raises(RetryError):
        asked.names()
    assert asked.names() == asked.names() == {"ho.control"}
    assert [one.asked for one in FakeAdmin.made] == [1, 2]


def test_a_client_that_is_silent_is_replaced() -> None:
    asked = Topics(KafkaConfig(bootstrap="nobody:1"))
    with pytest.raises(RetryError):
        asked.topic_id("ho.control")
    assert asked.names() == {"ho.control"}
    assert [one.asked for one in FakeAdmin.made] == [1, 1]


def test_a_client_that_is_answered_no_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeAdmin, "lost_first", False)
    asked = Topics(KafkaConfig(bootstrap="nobody:1"))
    with pytest.raises(ResyncError):
        asked.topic_id("ho.control")
    assert asked.names() == {"ho.control"}
    assert len(FakeAdmin.made) == 1
