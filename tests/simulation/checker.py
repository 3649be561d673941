"""The checker: everything that must hold while the run goes on and at its end, from its own model alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.simulation import plain
from tests.simulation.application import Sectors
from tests.simulation.cluster import Stored, Topic
from tests.simulation.disk import SECTOR_BYTES, Inode
from tests.simulation.history import EPOCH_START, MORE, WRITE, ZERO, Fold, History, Position, first_difference
from tests.simulation.scheduler import SimulationError


@dataclass(slots=True)
class Replica:
    """What is known of one target's replica: its durable checkpoint, and the fold at its last label."""

    path: str
    checkpoint: str
    fold: Fold
    at: Position = (0, 0)
    consistent_at: Position | None = None
    seen: tuple[int, int] = (0, 0)
    watched: Inode | None = None
    labels: int = 0
    made_anew: int = 0  # so often the journal was: each time its readers may begin again from its first message


@dataclass(slots=True)
class Watched:
    """One volume under the checker's eyes."""

    name: str
    history: History
    sectors: Sectors
    replica: Replica
    flush_policy: str
    promises: list[tuple[Position, str]] = field(default_factory=list)
    acknowledged: Position = (0, 0)
    fence: int = -1
    journaled: Position = (0, 0)
    journaled_ever: Position = (0, 0)
    fold: Fold | None = None  # of what was captured, at the last `sync_end`


class Checker:
    """Hear of everything that becomes visible; raise SimulationError at the first thing that must not be."""

    def __init__(self, files: Any) -> None:
        self._files = files
        self.volumes: dict[str, Watched] = {}

    # -- the log -------------------------------------------------------------------------------------------------------

    def appended(self, topic: Topic, message: Stored) -> None:
        """Look at a message that became durable."""
        _, _, rest = topic.name.partition(".")
        volume, _, kind = rest.rpartition(".")
        if kind == "writes":
            self._writes(self.volumes[volume], message)
        elif kind == "journal":
            self._journal(self.volumes[volume], message)

    def _writes(self, watched: Watched, message: Stored) -> None:
        """Compare every published record with the one that was captured."""
        _, body = plain.message(message.value)
        history, epoch, first = watched.history, body["epoch"], body["first_sequence"]
        told = dict(message.headers)
        if (int(told["epoch"]), int(told["first"]), int(told["last"])) != (epoch, first, first + len(body["kinds"]) - 1):
            raise self._wrong(watched, f"a message's headers contradict it at {message.offset}")
        if body["kinds"][0] == EPOCH_START:
            marks = {one["index"]: {**one["attributes"]} for one in body["marks"]}
            history.claim_logged(epoch, first, body["incarnation"], clean=marks[0]["clean"] == "true")
            return
        known = history.epochs.get(epoch)
        if known is None or known.incarnation != body["incarnation"]:
            raise self._wrong(watched, f"something is published under a claim that no ring holds, epoch {epoch}")
        at = 0
        columns = zip(body["kinds"], body["flags"], body["offsets"], body["lengths"], body["ages_ns"], strict=True)
        for index, (kind, flags, offset, length, age) in enumerate(columns):
            sequence = first + index
            if not known.first < sequence <= known.head:
                raise self._wrong(watched, f"{(epoch, sequence)} is published and was never captured")
            entry = known.entry(sequence)
            payload = body["payload"][at : at + length] if kind == WRITE else b""
            at += len(payload)
            same = (kind, flags, body["capture_time_ns"] + age) == (entry.kind, entry.flags, entry.time_ns)
            if kind in (WRITE, ZERO):
                same = same and (offset, length, payload) == (entry.offset, entry.length, entry.payload)
            if not same:
                raise self._wrong(watched, f"{(epoch, sequence)} is published with other content than it was captured with")
        if first <= max(known.logged, known.logged_ever) + 1:  # behind a hole that a broker left there the agent goes on
            known.logged = max(known.logged, sequence)
            known.logged_ever = max(known.logged_ever, known.logged)

    def _journal(self, watched: Watched, message: Stored) -> None:
        """See that the positions of the journal never go back, whoever writes it."""
        told = dict(message.headers)
        if told["kind"] == b"fence":
            watched.fence = message.offset
            return
        if int(told["writer"]) >= message.offset:  # of a worker that has not noticed yet that the topic was made anew
            watched.fence = message.offset + 1
            return
        if int(told["writer"]) < watched.fence:
            return
        position = int(told["epoch"]), int(told["last"])
        if told["kind"] == b"gap" and position == (0, 0):  # everything before it is deleted: nobody knows where it stood
            watched.journaled, watched.replica.made_anew = position, watched.replica.made_anew + 1
        if position < watched.journaled:
            raise self._wrong(watched, f"the journal goes back from {watched.journaled} to {position} at {message.offset}")
        watched.journaled = position
        watched.journaled_ever = max(watched.journaled_ever, position)
        watched.history.journaled(position)

    def made_anew(self, volume: str, topic: str) -> None:
        """Hear that a topic was deleted and made again: what it held is no promise any more."""
        watched = self.volumes[volume]
        if topic.endswith(".writes"):
            watched.promises.clear()
            watched.history.log_made_anew()
        else:
            watched.journaled, watched.fence = (0, 0), -1
            watched.replica.made_anew += 1

    def lost_end(self, volume: str, topic: Topic, lost: list[Stored]) -> None:
        """Hear that a broker lost the last messages of a writes topic: of what was in them nothing is promised any more."""
        watched = self.volumes[volume]
        for one in lost:
            told = dict(one.headers)
            known = watched.history.epochs.get(int(told["epoch"]))
            if known is not None:
                known.logged = min(known.logged, int(told["first"]) - 1)
        for one in topic.messages:
            told = dict(one.headers)
            known = watched.history.epochs.get(int(told["epoch"]))
            if known is not None and known.incarnation == told["incarnation"] and int(told["first"]) <= known.logged + 1:
                known.logged = max(known.logged, int(told["last"]))
        watched.promises = [(position, what) for position, what in watched.promises if self.covered(watched, position)]

    # -- the application -----------------------------------------------------------------------------------------------

    def covered(self, watched: Watched, position: Position) -> bool:
        """Tell whether the log has a position, in order and not overtaken by a newer claim."""
        epoch, sequence = position
        if position == (0, 0):
            return True
        known = watched.history.epochs[epoch]
        return sequence <= known.logged and not watched.history.is_lost(position)

    def promised(self, watched: Watched, position: Position, what: str) -> None:
        """Hear that the application was told that a position survives the host. Under the `stream` policy the log must have it."""
        covered = self.covered(watched, position)
        if not covered and position[1] > watched.history.epochs[position[0]].logged_ever:
            raise self._wrong(watched, f"{what} was answered before the log had {position}")
        if covered and position != (0, 0):
            watched.promises.append((position, what))

    def synced(self, watched: Watched, position: Position) -> None:
        """Look at a `sync_end` as it is captured: what was recorded up to here is what the source holds, but for what is on its way."""
        fold, history = watched.fold, watched.history
        if fold is None or history.is_lost(fold.at):
            fold = watched.fold = Fold(history)
        fold.advance(position)
        source = history.source.data
        if fold.open:
            raise self._wrong(watched, f"the sync_end at {position} leaves gaps open: {sorted(fold.open)}")
        if fold.image == source:
            return
        allowed = watched.sectors.on_their_way()
        for sector in range(watched.sectors.count):
            at = sector * SECTOR_BYTES
            if fold.image[at : at + SECTOR_BYTES] != source[at : at + SECTOR_BYTES] and sector not in allowed:
                raise self._wrong(watched, f"the sync_end at {position} comes although sector {sector} was not copied")

    # -- the target ----------------------------------------------------------------------------------------------------

    def fsynced(self, folder: str) -> None:
        """Look at the checkpoints of a folder whose names became durable."""
        for watched in self.volumes.values():
            replica = watched.replica
            if replica.checkpoint.rpartition("/")[0] == folder:
                self._see_checkpoint(watched, replica)

    def _see_checkpoint(self, watched: Watched, replica: Replica) -> None:
        inode = self._files.volume(replica.checkpoint).names.get(replica.checkpoint)
        if inode is None or (inode.number, len(inode.data)) == replica.seen:
            return
        replica.seen = (inode.number, len(inode.data))
        position, replica.consistent_at = self._read(inode)
        if position < replica.at:
            if not replica.made_anew:
                raise self._wrong(watched, f"the replica's checkpoint goes back from {replica.at} to {position}")
            replica.made_anew -= 1
            replica.fold = Fold(watched.history)
        replica.at = position
        held = self._files.lookup(replica.path)
        if replica.watched is not held:
            replica.watched = held
            held.watch = lambda start, end: self._written(watched, replica, start, end)
        if replica.consistent_at is not None:
            replica.labels += 1
            self.check_label(watched, replica, held)

    def check_label(self, watched: Watched, replica: Replica, held: Inode) -> None:
        """Prove the label *consistent at P*: the bytes are the fold of the history up to P, and durable."""
        at = replica.consistent_at
        if at > watched.journaled_ever:
            raise self._wrong(watched, f"the replica is labelled {at}, the journal stands at {watched.journaled_ever}")
        replica.fold.advance(at)
        if replica.fold.open:
            raise self._wrong(watched, f"the replica is labelled consistent at {at}, with gaps open since {sorted(replica.fold.open)}")
        if replica.fold.inside_split:
            raise self._wrong(watched, f"the replica is labelled inside a split write, at {at}")
        differs = first_difference(replica.fold.image, held.data)
        if differs is not None:
            raise self._wrong(watched, f"the replica is labelled consistent at {at}, and is not: {differs}")
        if held.dirty:
            raise self._wrong(watched, f"the replica is labelled consistent at {at} with {len(held.dirty)} writes not flushed")

    def _written(self, watched: Watched, replica: Replica, start: int, end: int) -> None:
        if replica.consistent_at is not None:
            raise self._wrong(watched, f"bytes {start}..{end} of the replica change under the label consistent at {replica.consistent_at}")

    def target_lost_power(self, watched: Watched) -> None:
        """After a power cut: what the checkpoint calls applied is there, or was overwritten by something later."""
        replica = watched.replica
        inode = self._files.volume(replica.checkpoint).names.get(replica.checkpoint)
        held = self._files.volume(replica.path).names.get(replica.path)
        if inode is None or held is None:
            return
        position, replica.consistent_at = self._read(inode)
        gaps = self._gaps(inode)
        replica.seen = (inode.number, len(inode.data))
        if position < replica.at and not replica.made_anew:
            raise self._wrong(watched, f"a power cut brought the checkpoint back from {replica.at} to {position}")
        replica.at = position
        if replica.consistent_at is not None:
            self.check_label(watched, replica, held)
            return
        fold = replica.fold.copy()
        if position < fold.at:
            raise self._wrong(watched, f"the checkpoint says {position}, and was labelled {fold.at}")
        fold.advance(position)
        if gaps - fold.open:
            return  # the journal lacks what the history has: a gap of order, or of the target
        later = _touched_after(watched.history, position)
        for sector in range(watched.sectors.count):
            at = sector * SECTOR_BYTES
            if fold.image[at : at + SECTOR_BYTES] != held.data[at : at + SECTOR_BYTES] and not later[sector]:
                raise self._wrong(watched, f"a power cut lost sector {sector} of the replica, applied up to {position}")

    @staticmethod
    def _read(inode: Inode) -> tuple[Position, Position | None]:
        body = json.loads(bytes(inode.data))
        label = body["consistent_at"]
        return _position(body["position"]), None if label is None else _position(label)

    @staticmethod
    def _gaps(inode: Inode) -> set[Position]:
        """Return the gaps that a checkpoint knows."""
        body = json.loads(bytes(inode.data))
        return {_position(one["position"]) for one in (*body["open_gaps"], *body["own_gaps"])}

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(self, store: Any, reports: dict[tuple[str, str], dict[str, Any]]) -> None:
        """Compare source, replica, history and store when nothing is on its way any more."""
        for watched in self.volumes.values():
            source = watched.history.source.data
            watched.sectors.check(source, what="the source at the end")
            held = self._files.lookup(watched.replica.path)
            differs = first_difference(source, held.data)
            if differs is not None:
                raise self._wrong(watched, f"source and replica differ at the end: {differs}")
            for position, what in watched.promises:
                if watched.history.is_lost(position):
                    raise self._wrong(watched, f"{what} was answered for {position}, which a later claim left behind")
            self._check_store(watched, store)
            told = reports.get(("target", "target"), {}).get(watched.name)
            if told is not None and told[1]["verify_mismatches"]:
                raise self._wrong(watched, f"verification cried wolf {told[1]['verify_mismatches']} times")

    def _check_store(self, watched: Watched, store: Any) -> None:
        """Fold the store's segments, each above what is covered, and compare with the history at their end."""
        mine = [data for name, data in sorted(store.objects.items()) if name.startswith(f"{watched.name}/")]
        image, covered = fold_segments(mine, watched)
        if watched.replica.consistent_at is None or covered < watched.replica.consistent_at:
            raise self._wrong(watched, f"the store ends at {covered}, the replica at {watched.replica.consistent_at}")
        fold = Fold(watched.history)
        fold.advance(covered)
        differs = first_difference(fold.image, image)
        if differs is not None:
            raise self._wrong(watched, f"the store's fold at {covered} is not the history's: {differs}")

    def _wrong(self, watched: Watched, told: str) -> SimulationError:
        return SimulationError(f"volume {watched.name}: {told}")


def fold_segments(segments: list[bytes], watched: Watched) -> tuple[bytearray, Position]:
    """Return the bytes that segments leave, in the order of their names, and the last position in them."""
    image = bytearray(watched.history.size_bytes)
    covered: Position = (0, 0)
    split: list[tuple[int, bytes]] = []
    for part in [part for data in segments for part in plain.segment(data)[1:] if "kinds" in part]:
        payload, at = plain.payload(part["codec"], part["payload"], part["payload_bytes"]), 0
        columns = zip(part["kinds"], part["flags"], part["offsets"], part["lengths"], strict=True)
        for index, (kind, flags, offset, length) in enumerate(columns):
            piece = payload[at : at + length] if kind == WRITE else b""
            at += len(piece)
            position = part["epoch"], part["first_sequence"] + index
            if position <= covered:
                continue
            covered = position
            if kind == WRITE:
                split.append((offset, piece))
                if flags & MORE:
                    continue
                for start, written in split:
                    image[start : start + len(written)] = written
            elif kind == ZERO:
                image[offset : offset + length] = bytes(length)
            split.clear()
    return image, covered


def _position(text: str) -> Position:
    epoch, _, sequence = text.partition("-")
    return int(epoch), int(sequence)


def _touched_after(history: History, position: Position) -> bytearray:
    """Return which sectors any record after a position touches."""
    touched = bytearray(history.size_bytes // SECTOR_BYTES)
    for number, epoch in history.epochs.items():
        for sequence in range(epoch.first + 1, epoch.head + 1):
            if (number, sequence) > position:
                entry = epoch.entry(sequence)
                if entry.kind in (WRITE, ZERO):
                    first, end = entry.offset // SECTOR_BYTES, -(-(entry.offset + entry.length) // SECTOR_BYTES)
                    touched[first:end] = b"\1" * (end - first)
    return touched
