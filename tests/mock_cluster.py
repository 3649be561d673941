"""librdkafka's own mock cluster: brokers that speak Kafka's protocol inside this process, and answer with planted errors.

It is part of the library that confluent-kafka brings along (`rdkafka_mock.h`), reached through ctypes. It knows no configs.
"""

from __future__ import annotations

import ctypes

from confluent_kafka import cimpl

PRODUCE = 0
_PRODUCER = 0
_lib = ctypes.CDLL(cimpl.__file__)  # symbols of what it is linked to are found through it
_pointer, _text, _int = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
for _name, _result, _arguments in (
    ("rd_kafka_conf_new", _pointer, ()),
    ("rd_kafka_conf_set_log_cb", None, (_pointer, _pointer)),
    ("rd_kafka_new", _pointer, (_int, _pointer, _text, ctypes.c_size_t)),
    ("rd_kafka_destroy", None, (_pointer,)),
    ("rd_kafka_mock_cluster_new", _pointer, (_pointer, _int)),
    ("rd_kafka_mock_cluster_destroy", None, (_pointer,)),
    ("rd_kafka_mock_cluster_bootstraps", _text, (_pointer,)),
    ("rd_kafka_mock_topic_create", _int, (_pointer, _text, _int, _int)),
    ("rd_kafka_mock_partition_set_leader", _int, (_pointer, _text, ctypes.c_int32, ctypes.c_int32)),
    ("rd_kafka_mock_push_request_errors_array", None, (_pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(_int))),
):
    _function = getattr(_lib, _name)
    _function.restype, _function.argtypes = _result, list(_arguments)


class MockCluster:
    """Some brokers. `refuse` lets the next produce requests fail."""

    def __init__(self, brokers: int = 1) -> None:
        told = ctypes.create_string_buffer(512)
        config = _lib.rd_kafka_conf_new()
        _lib.rd_kafka_conf_set_log_cb(config, None)
        self._client = _lib.rd_kafka_new(_PRODUCER, config, told, len(told))
        assert self._client, told.value.decode()
        self._cluster = _lib.rd_kafka_mock_cluster_new(self._client, brokers)
        self.bootstrap: str = _lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def __enter__(self) -> MockCluster:
        return self

    def __exit__(self, *_: object) -> None:
        _lib.rd_kafka_mock_cluster_destroy(self._cluster)
        _lib.rd_kafka_destroy(self._client)

    def create(self, topic: str) -> None:
        assert _lib.rd_kafka_mock_topic_create(self._cluster, topic.encode(), 1, 1) == 0

    def refuse(self, *codes: int) -> None:
        """Answer the next produce requests with these error codes, one each."""
        _lib.rd_kafka_mock_push_request_errors_array(self._cluster, PRODUCE, len(codes), (_int * len(codes))(*codes))

    def lead(self, topic: str, broker: int) -> None:
        """Let this broker (1, 2, ...) lead the topic's partition, none if it is -1."""
        assert _lib.rd_kafka_mock_partition_set_leader(self._cluster, topic.encode(), 0, broker) == 0
