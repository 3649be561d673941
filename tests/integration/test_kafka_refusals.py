"""TLS and SASL against a real broker: every client gets in with the right papers, and each wrong one is one clear sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stream.access import check_access
from stream.config import KafkaConfig
from stream.consumer import PartitionReader
from stream.errors import ConfigError, RetryError
from stream.producer import OrderedProducer
from stream.topics import CONTROL_TOPIC, Topics, data_topics, writes_topic
from tests.certificates import Authority
from tests.kafka_fixture import fresh_volume_name
from tests.secure_kafka import ADMIN, SecureKafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"])
def test_admin_producer_and_reader_get_in_with_a_password(secure_kafka: SecureKafka, mechanism: str) -> None:
    _through(secure_kafka.client(sasl_mechanism=mechanism))


def test_admin_producer_and_reader_get_in_with_a_certificate(secure_kafka: SecureKafka) -> None:
    _through(_with_certificate(secure_kafka, "admin"))


def test_a_password_without_tls_gets_in_where_the_listener_allows_it(secure_kafka: SecureKafka) -> None:
    config = secure_kafka.client(bootstrap=secure_kafka.sasl_plain, security_protocol="sasl_plaintext", ssl_ca="")
    check_access(config)
    assert Topics(config).names() is not None


def test_a_password_by_file_and_by_command_is_as_good(secure_kafka: SecureKafka, tmp_path: Path) -> None:
    word = tmp_path / "word"
    word.write_text(secure_kafka.passwords[ADMIN] + "\n")
    check_access(secure_kafka.client(sasl_password="", sasl_password_file=str(word)))
    check_access(secure_kafka.client(sasl_password="", sasl_password_command=f"cat '{word}'"))


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
def test_a_wrong_password_is_told_as_one(secure_kafka: SecureKafka, mechanism: str) -> None:
    told = _refused(secure_kafka.client(sasl_password="wrong-word", sasl_mechanism=mechanism))
    assert told.sentence == "Kafka refuses the user admin: wrong name or password"
    assert "wrong-word" not in f"{told} {told.hint}"


def test_a_mechanism_that_is_not_offered_is_told_as_one(secure_kafka: SecureKafka) -> None:
    config = secure_kafka.client(
        bootstrap=secure_kafka.sasl_plain, security_protocol="sasl_plaintext", ssl_ca="", sasl_mechanism="PLAIN"
    )
    told = _refused(config)
    assert told.sentence.startswith("The broker does not take PLAIN") and "kafka.sasl_mechanism" in told.hint


def test_an_untrusted_certificate_is_told_as_one(secure_kafka: SecureKafka, tmp_path: Path) -> None:
    told = _refused(secure_kafka.client(ssl_ca=str(Authority(tmp_path, "other").ca)))
    assert told.sentence.startswith(f"The certificate of {secure_kafka.sasl_ssl} is not trusted") and "kafka.ssl_ca" in told.hint


def test_a_broker_under_a_name_that_its_certificate_lacks_is_not_trusted(secure_kafka: SecureKafka) -> None:
    port = secure_kafka.sasl_ssl.rpartition(":")[2]
    told = _refused(secure_kafka.client(bootstrap=f"localhost:{port}"))
    assert "is not trusted" in told.sentence


def test_a_plain_client_at_a_tls_listener_is_told_so(secure_kafka: SecureKafka) -> None:
    told = _refused(KafkaConfig(bootstrap=secure_kafka.sasl_ssl))
    assert told.sentence == f"The broker at {secure_kafka.sasl_ssl} speaks TLS, and kafka.security_protocol is plaintext"


def test_a_tls_client_at_a_plain_listener_is_told_so(secure_kafka: SecureKafka) -> None:
    told = _refused(secure_kafka.client(bootstrap=secure_kafka.sasl_plain))
    assert told.sentence == f"The broker at {secure_kafka.sasl_plain} speaks plain text, and kafka.security_protocol is sasl_ssl"


def test_a_client_without_a_user_at_a_sasl_listener_is_told_so(secure_kafka: SecureKafka) -> None:
    with pytest.raises(RetryError) as caught:
        Topics(KafkaConfig(bootstrap=secure_kafka.sasl_plain)).names()
    assert "kafka.security_protocol" in caught.value.hint


@pytest.mark.parametrize("shown", ["none", "foreign"])
def test_a_client_whose_own_certificate_is_refused_is_told_so(secure_kafka: SecureKafka, tmp_path: Path, shown: str) -> None:
    config = _with_certificate(secure_kafka, "somebody")
    if shown == "none":
        config = replace(config, ssl_certificate="", ssl_key="")
    else:
        certificate, key = Authority(tmp_path, "other").sign("admin")
        config = replace(config, ssl_certificate=str(certificate), ssl_key=str(key))
    told = _refused(config)
    assert told.sentence.startswith(f"{secure_kafka.mutual} ends the TLS handshake") and "kafka.ssl_certificate" in told.hint


def _with_certificate(kafka: SecureKafka, name: str) -> KafkaConfig:
    certificate, key = kafka.authority.sign(name)
    return KafkaConfig(
        bootstrap=kafka.mutual,
        security_protocol="ssl",
        ssl_ca=str(kafka.authority.ca),
        ssl_certificate=str(certificate),
        ssl_key=str(key),
    )


def _refused(config: KafkaConfig) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_access(config)
    assert caught.value.hint and "\n" not in caught.value.sentence
    return caught.value


def _through(config: KafkaConfig) -> None:
    """Take one message through every kind of client."""
    check_access(config)
    volume = fresh_volume_name()
    Topics(config).ensure(data_topics(volume, config))
    told: list[object] = []
    producer = OrderedProducer(config, writes_topic(volume), lambda tag, _: told.append(tag), queue_bytes_max=1 << 20)
    producer.produce(b"one", [], "tag")
    assert producer.flush(60) and told == ["tag"]
    producer.close()
    with PartitionReader(config, writes_topic(volume)) as reader:
        assert [message.value for message in reader.read_range(0, 1)] == [b"one"]


def test_a_client_whose_password_became_wrong_is_told_to_try_again(secure_kafka: SecureKafka) -> None:
    """A service that runs must not stop for good: the administrator may put the old password back, or the new one into the file."""
    config = secure_kafka.client(sasl_password="wrong-word")
    with pytest.raises(RetryError), PartitionReader(config, CONTROL_TOPIC) as reader:
        reader.bounds(3)
    producer = OrderedProducer(config, CONTROL_TOPIC, lambda tag, _: None, queue_bytes_max=1 << 20)
    producer.produce(b"one", [], "tag")
    assert not producer.flush(3), "nothing is delivered, and nothing is given up"
    producer.close()
