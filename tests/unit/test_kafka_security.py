"""How clients prove themselves, without a broker: what is refused before one is asked, and where a password must not be seen."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from cx_consumers.app import _credentials
from hostoffload.broker import choose
from stream import security
from stream.config import KafkaConfig, describe, load
from stream.errors import ConfigError
from stream.kafka import client_settings
from tests.certificates import Authority

WORD = "the-word-7Xq"
SASL = KafkaConfig(security_protocol="sasl_plaintext", sasl_username="u", sasl_password=WORD)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"sasl_username": ""}, "kafka.sasl_username is not set"),
        ({"sasl_password": ""}, "The password of Kafka is not set"),
        ({"sasl_password_file": "/x"}, "kafka.sasl_password and kafka.sasl_password_file are set"),
        ({"sasl_password": "", "sasl_password_file": "/nowhere/x"}, "kafka.sasl_password_file can't be read: No such file or directory"),
        ({"ssl_ca": "/x"}, "kafka.security_protocol is sasl_plaintext, so the certificates are not used"),
        ({"ssl_key": "/x"}, "kafka.ssl_certificate is not set"),
        ({"ssl_certificate": "/x"}, "kafka.ssl_key is not set"),
        ({"security_protocol": "plaintext"}, "kafka.security_protocol is plaintext, so user name and password are not used"),
        ({"security_protocol": "sasl_ssl", "ssl_ca": "/nowhere/x"}, "kafka.ssl_ca can't be used: No such file or directory"),
        ({"security_protocol": "sasl_ssl", "ssl_ca": __file__}, "kafka.ssl_ca can't be used: NO_CERTIFICATE_OR_CRL_FOUND"),
    ],
)
def test_what_contradicts_itself_is_refused_by_the_key(changed: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        security.check(replace(SASL, **changed))
    assert caught.value.sentence == sentence and caught.value.hint


@pytest.mark.parametrize("case", ["absent certificate", "absent key", "another's key", "passphrase"])
def test_a_certificate_that_cant_be_shown_is_refused(authority: Authority, tmp_path: Path, case: str) -> None:
    certificate, key = authority.sign("client")
    other = authority.sign("other")[1]
    locked = tmp_path / "locked.key"
    if case == "passphrase":
        locked.write_bytes(_with_passphrase(key))
    files = {
        "absent certificate": (tmp_path / "none", key),
        "absent key": (certificate, tmp_path / "none"),
        "another's key": (certificate, other),
        "passphrase": (certificate, locked),
    }[case]
    config = KafkaConfig(security_protocol="ssl", ssl_ca=str(authority.ca), ssl_certificate=str(files[0]), ssl_key=str(files[1]))
    with pytest.raises(ConfigError) as caught:
        security.check(config)
    assert caught.value.sentence.startswith("kafka.ssl_key" if case == "absent key" else "kafka.ssl_certificate")


def test_a_password_is_the_first_line_of_a_file_or_of_a_command(tmp_path: Path) -> None:
    path = tmp_path / "word"
    path.write_text(f"{WORD}\nremark\n")
    assert security.password(replace(SASL, sasl_password="", sasl_password_file=str(path))) == WORD
    assert security.password(replace(SASL, sasl_password="", sasl_password_command=f"cat '{path}'")) == WORD


def test_a_command_is_asked_once_a_minute(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    config = replace(SASL, sasl_password="", sasl_password_command=f"echo x >> '{asked}'; echo {WORD}")
    assert [security.password(config) for _ in range(3)] == [WORD] * 3
    assert asked.read_text() == "x\n"


@pytest.mark.parametrize("line", [f"echo {WORD}; exit 3", "true", "echo", "printf '\\377'"])
def test_a_command_that_fails_is_told_without_what_it_said(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        security.password(replace(SASL, sasl_password="", sasl_password_command=line))
    assert caught.value.sentence == "kafka.sasl_password_command gives nothing"
    assert WORD not in repr(caught.value) + str(caught.value) + caught.value.hint


@pytest.mark.parametrize("text", ["", "\nsecond"])
def test_an_empty_password_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "word"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is empty"):
        security.check(replace(SASL, sasl_password="", sasl_password_file=str(path)))


def test_a_password_is_in_no_repr_no_description_and_no_complaint(tmp_path: Path) -> None:
    config = load(None, {"HOSTOFFLOAD_KAFKA_SASL_PASSWORD": WORD})
    assert config.kafka.sasl_password == WORD
    assert WORD not in repr(config) + str(config) + str(describe(config))
    path = tmp_path / "config.toml"
    path.write_text("[kafka]\nsasl_password = 123454321\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert "123454321" not in str(caught.value)


def test_every_client_gets_the_same_papers(authority: Authority) -> None:
    certificate, key = authority.sign("client")
    config = KafkaConfig(
        security_protocol="sasl_ssl",
        ssl_ca=str(authority.ca),
        ssl_certificate=str(certificate),
        ssl_key=str(key),
        sasl_mechanism="SCRAM-SHA-256",
        sasl_username="u",
        sasl_password=WORD,
    )
    settings = client_settings(config)
    assert settings["security.protocol"] == "sasl_ssl" and settings["ssl.ca.location"] == str(authority.ca)
    assert (settings["sasl.mechanism"], settings["sasl.username"], settings["sasl.password"]) == ("SCRAM-SHA-256", "u", WORD)
    assert settings["ssl.certificate.location"] == str(certificate) and settings["ssl.key.location"] == str(key)
    assert settings["ssl.endpoint.identification.algorithm"] == "https"
    faust = _credentials(config)
    assert (faust.protocol.value, faust.mechanism.value, faust.username, faust.password) == ("SASL_SSL", "SCRAM-SHA-256", "u", WORD)
    assert faust.ssl_context.verify_mode is ssl.CERT_REQUIRED and faust.ssl_context.check_hostname


def test_faust_is_plain_or_shows_a_certificate_as_the_others_do(authority: Authority) -> None:
    assert _credentials(KafkaConfig()) is None
    assert "security.protocol" not in client_settings(KafkaConfig())
    mutual = _credentials(KafkaConfig(security_protocol="ssl", ssl_ca=str(authority.ca)))
    assert mutual.protocol.value == "SSL" and mutual.context.check_hostname
    assert _credentials(SASL).protocol.value == "SASL_PLAINTEXT"


def test_a_broker_of_this_machine_is_not_used_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP", raising=False)
    monkeypatch.setattr("hostoffload.broker._Machine.lacks", lambda *_: None)
    with pytest.raises(ConfigError, match="A broker of this machine speaks plain text"):
        choose(tmp_path, bootstrap=None, force=None, say=print, client=replace(SASL, security_protocol="sasl_ssl"))
    assert choose(tmp_path, bootstrap="kafka:9093", force=None, say=print, client=SASL).kind == "external"


def _with_passphrase(key: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key

    private = load_pem_private_key(key.read_bytes(), None)
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"phrase"))
