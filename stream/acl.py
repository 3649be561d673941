"""Access control lists: the rights of `stream.roles` put into force at the broker, by a user who may alter the cluster."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from stream.config import KafkaConfig
from stream.errors import ConfigError, HostoffloadError, RetryError
from stream.kafka import client_settings, translate
from stream.roles import Right

TIMEOUT_S = 15.0
ANY_HOST = "*"
_RESOURCES = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP}
_OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Delete": AclOperation.DELETE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}


class AccessLists:
    """Give and take rights. Idempotent; every call raises RetryError while the broker does not answer, ConfigError if it refuses."""

    def __init__(self, config: KafkaConfig) -> None:
        self._admin = AdminClient(client_settings(config))

    def give(self, principal: str, rights: Iterable[Right]) -> None:
        """Allow a user (`User:name`) these rights, from any host. What it was allowed before stays allowed."""
        bindings = [AclBinding(*_place(one), principal, ANY_HOST, _OPERATIONS[one.operation], AclPermissionType.ALLOW) for one in rights]
        self._wait(self._admin.create_acls(bindings, request_timeout=TIMEOUT_S))

    def take(self, principal: str, rights: Iterable[Right]) -> None:
        """Take from a user what `give` gave; rights that it does not have are passed over."""
        allow = AclPermissionType.ALLOW
        filters = [AclBindingFilter(*_place(one), principal, ANY_HOST, _OPERATIONS[one.operation], allow) for one in rights]
        self._wait(self._admin.delete_acls(filters, request_timeout=TIMEOUT_S))

    def _wait(self, asked: dict[object, Future]) -> None:
        for future in asked.values():
            try:
                future.result(TIMEOUT_S)
            except TimeoutError as error:
                raise RetryError("The broker does not answer in time", hint="Check that it runs and can be reached.") from error
            except KafkaException as error:
                raise _refused(error) from error


def _place(right: Right) -> tuple[ResourceType, str, ResourcePatternType]:
    pattern = ResourcePatternType.PREFIXED if right.prefix else ResourcePatternType.LITERAL
    return _RESOURCES[right.resource], right.name, pattern


def _refused(error: KafkaException) -> HostoffloadError:
    code = error.args[0].code()
    if code == KafkaError.SECURITY_DISABLED:
        hint = "Set its authorizer.class.name; see docs/security.md."
        return ConfigError("The broker has no authorizer: everybody may do everything", hint=hint)
    if code == KafkaError.CLUSTER_AUTHORIZATION_FAILED:
        return ConfigError("This user may not change access control lists", hint="Use one that may Alter the cluster, as super.users name.")
    return translate(error, "The access control lists can't be changed")
