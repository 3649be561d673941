"""Who needs which rights at the broker: the least that each role can work with, as data.

Pure. `docs/security.md` shows the same table and a test compares them; `stream.acl` puts it into force. Volumes stand by name, because
Kafka knows no pattern that ends a name: `ho.` as a prefix would give an agent the writes of all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stream.errors import ConfigError
from stream.topic_names import check_volume_name

CX_GROUP = "ho-cx"
READER_GROUPS = "ho.reader."
VOLUME = "<volume>"


@dataclass(frozen=True, slots=True)
class Grant:
    """Rights on one resource (`topic` or `group`); a name that ends with `*` means all names that begin so."""

    resource: str
    name: str
    operations: tuple[str, ...]

    @property
    def is_of_volume(self) -> bool:
        return VOLUME in self.name


@dataclass(frozen=True, slots=True)
class Right:
    """One operation on one resource whose name is known; `prefix` means all names that begin so."""

    resource: str
    name: str
    prefix: bool
    operation: str


_WRITES, _JOURNAL = f"ho.{VOLUME}.writes", f"ho.{VOLUME}.journal"
_CONTROL = Grant("topic", "ho.control", ("Read", "Write", "DescribeConfigs"))
_READERS = Grant("group", f"{READER_GROUPS}*", ("Describe",))  # librdkafka looks for a group's coordinator even if it never commits

ROLES: dict[str, tuple[Grant, ...]] = {
    "agent": (
        Grant("topic", _WRITES, ("Read", "Write", "DescribeConfigs")),
        _CONTROL,
        Grant("topic", "ho.status", ("Read", "Write", "DescribeConfigs")),
        _READERS,
    ),
    "cx": (
        Grant("topic", _WRITES, ("Read", "Create", "DescribeConfigs")),
        Grant("topic", _JOURNAL, ("Read", "Write", "Create", "DescribeConfigs")),
        _CONTROL,
        Grant("topic", "ho.status", ("Write", "DescribeConfigs")),
        Grant("group", CX_GROUP, ("Read",)),
        _READERS,
    ),
    "target": (
        Grant("topic", _JOURNAL, ("Read",)),
        _CONTROL,
        Grant("topic", "ho.status", ("Write", "DescribeConfigs")),
        _READERS,
    ),
    "operator": (
        Grant("topic", "ho.*", ("Read", "Create", "Delete", "DescribeConfigs")),
        Grant("topic", "ho.control", ("Write",)),
        _READERS,
    ),
}


def rights(role: str, volumes: Iterable[str]) -> list[Right]:
    """Return what a role needs for these volumes. Raises ConfigError for a role or volume that can't be, and a role without its volumes."""
    if role not in ROLES:
        raise ConfigError(f"There is no role {role!r}", hint=f"Roles: {', '.join(ROLES)}.")
    names = sorted({check_volume_name(name) for name in volumes})
    needs_volumes = any(grant.is_of_volume for grant in ROLES[role])
    if needs_volumes and not names:
        raise ConfigError(f"The role {role} has rights on volumes, and none is named", hint="Name each by --volume.")
    if names and not needs_volumes:
        raise ConfigError(f"The role {role} has rights on all volumes", hint="Leave --volume out.")
    return list(_rights(ROLES[role], names))


def rights_to_take(role: str, volumes: Iterable[str]) -> list[Right]:
    """Return the rights on these volumes alone; without volumes those that are on none. Raises ConfigError as `rights` does."""
    names = list(volumes)
    if names:
        on_none = set(_rights((grant for grant in ROLES.get(role, ()) if not grant.is_of_volume), ()))
        return [one for one in rights(role, names) if one not in on_none]
    return list(_rights((grant for grant in ROLES[role] if not grant.is_of_volume), ()))


def _rights(grants: Iterable[Grant], volumes: Iterable[str]) -> Iterator[Right]:
    for grant in grants:
        for volume in volumes if grant.is_of_volume else ("",):
            name = grant.name.replace(VOLUME, volume)
            for operation in grant.operations:
                yield Right(grant.resource, name.removesuffix("*"), name.endswith("*"), operation)
