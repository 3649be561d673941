"""Whether a volume may be declared: source and replica are looked at and compared with all other volumes, before anything is changed.

Used by `volume add`. Every refusal is a ConfigError that names the path and says what would do.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from stream.control import Replica, VolumeDeclaration
from stream.errors import ConfigError, FencedError


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """What is to be declared; the replica is still to be made if `replica_absent`."""

    source: str
    replica: str
    size_bytes: int
    replica_absent: bool
    target: str = "target"
    delay_s: float = 0.0

    @property
    def wanted(self) -> Replica:
        """Return the replica as it is to be declared."""
        return Replica(self.target, self.replica, self.delay_s)


def plan_volume(source: Path, replica: Path, *, target: str = "target", delay_s: float = 0.0, here: bool = True) -> VolumePlan:
    """Look at both paths; at the replica only if its target runs `here`. Raises ConfigError; changes nothing."""
    source_path, replica_path = os.path.abspath(source), os.path.abspath(replica) if here else str(replica)
    size_bytes = _source_size(source_path)
    if not here:
        if not os.path.isabs(replica_path):
            raise ConfigError(f"The replica {replica_path} is on another machine", hint="Name it by its whole path there.")
        return VolumePlan(source_path, replica_path, size_bytes, False, target, delay_s)
    if same_volume(source_path, replica_path):
        raise ConfigError("Source and replica are the same volume", hint="The replica must be another file or device.", path=source_path)
    absent = not os.path.lexists(replica_path)
    if absent:
        _check_folder(replica_path)
    else:
        _check_replica(replica_path, size_bytes)
    return VolumePlan(source_path, replica_path, size_bytes, absent, target, delay_s)


def check_free(name: str, plan: VolumePlan, others: Iterable[VolumeDeclaration]) -> None:
    """Refuse a source or replica that another volume, or another target of this one, uses already. Raises ConfigError."""
    for other in others:
        if other.state == "removed":
            continue
        if other.volume == name:
            _check_other_targets(plan, other)
            continue
        used = [(other.source, "source"), *((one.path, "replica") for one in other.replicas)]
        for path, role in ((plan.source, "source"), (plan.replica, "replica")):
            for taken, taken_as in used:
                if same_volume(path, taken):
                    raise ConfigError(
                        f"The {role} {path} is the {taken_as} of volume {other.volume!r} already",
                        hint=f"Choose another one, or remove that volume first: hostoffload volume remove {other.volume}",
                    )


def check_existing(
    name: str, plan: VolumePlan, existing: VolumeDeclaration | None, agent: str, *, take_over: bool
) -> VolumeDeclaration | None:
    """Return the volume as it is declared already, with this source, for another replica to be added or the same one declared again.

    Raises ConfigError if another one has the name, or this target another replica of it; FencedError if another agent has it.
    """
    if existing is None or existing.state == "removed":
        return None
    if existing.agent != agent and not take_over:
        raise FencedError(
            f"Volume {name!r} is protected by the agent {existing.agent!r}",
            hint="Stop it there; --take-over claims the volume for this host.",
            holder=existing.agent,
        )
    if take_over and existing.agent != agent:
        return None
    if existing.source != plan.source:
        raise ConfigError(
            f"There is a volume {name!r} already, from {existing.source}",
            hint=f"Choose another name, or remove it first: hostoffload volume remove {name}",
        )
    mine = next((one for one in existing.replicas if one.target == plan.target), None)
    if mine is not None and mine.path != plan.replica:
        raise ConfigError(
            f"There is a volume {name!r} already, whose target {plan.target!r} keeps the replica {mine.path}",
            hint=f"Name another --target for one more, or end that one: hostoffload volume remove {name} --target {plan.target}",
        )
    if existing.state == "paused":
        raise ConfigError(f"Volume {name!r} is paused", hint=f"Go on with it: hostoffload volume resume {name}")
    return existing


def replicas_with(existing: VolumeDeclaration | None, plan: VolumePlan, delay_s: float | None) -> tuple[Replica, ...]:
    """Return the replicas of a volume once the plan's is among them: others stay, also of a volume taken over, and so does its delay unless
    another is asked for."""
    kept = () if existing is None or existing.state == "removed" else existing.replicas
    before_s = next((one.delay_s for one in kept if one.target == plan.target), 0.0)
    wanted = replace(plan.wanted, delay_s=before_s if delay_s is None else delay_s)
    return (*(one for one in kept if one.target != plan.target), wanted)


def _check_other_targets(plan: VolumePlan, declared: VolumeDeclaration) -> None:
    for one in declared.replicas:
        if one.target != plan.target and same_volume(plan.replica, one.path):
            raise ConfigError(
                f"The replica {plan.replica} is that of the target {one.target!r} already", hint="Every target needs a replica of its own."
            )


def make_replica(plan: VolumePlan) -> None:
    """Make an absent replica: sparse, the size of the source, for its owner alone. Raises ConfigError."""
    try:
        fd = os.open(plan.replica, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, plan.size_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(
            f"The replica {plan.replica} can't be made: {error.strerror}", hint="Choose a place that can hold a file of the source's size."
        ) from error


def same_volume(one: str, other: str) -> bool:
    """Tell whether two paths are one file or one device, through links too."""
    try:
        first, second = os.stat(one), os.stat(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
    if stat.S_ISBLK(first.st_mode) and stat.S_ISBLK(second.st_mode):
        return first.st_rdev == second.st_rdev
    return os.path.samestat(first, second)


def _source_size(path: str) -> int:
    size = _size(path, "source", "It must be an existing regular file or block device.")
    if size == 0:
        raise ConfigError(f"The source {path} is empty", hint="Make it its full size first, for example with truncate.")
    return size


def _check_replica(path: str, size_bytes: int) -> None:
    size = _size(path, "replica", "It must be a regular file or block device, or be absent: then it is made.")
    if size != size_bytes:
        raise ConfigError(
            f"The replica {path} has {size} bytes, the source {size_bytes}",
            hint="Make it the size of the source, or remove it: then it is made.",
        )
    if stat.S_ISBLK(os.stat(path).st_mode):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))  # EBUSY: mounted, or part of something (open(2))
        except OSError as error:
            raise ConfigError(
                f"The replica {path} can't be used: {error.strerror}", hint="Is it mounted, or part of a RAID or LVM?"
            ) from error


def _check_folder(path: str) -> None:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigError(f"The folder of the replica {path} does not exist", hint=f"Make it first: mkdir -p {folder}")


def _size(path: str, role: str, hint: str) -> int:
    """Return the size of a file or device in bytes."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ConfigError(f"The {role} {path} is neither a regular file nor a block device", hint=hint)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"The {role} {path} can't be used: {error.strerror}", hint=hint) from error
    with contextlib.closing(os.fdopen(fd, "rb", buffering=0)) as file:
        return file.seek(0, os.SEEK_END)
