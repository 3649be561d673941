"""The checkpoint of a replica: how far it is, what may be said about its bytes, and in which file they are.

One file a volume, `<state>/target/<volume>.json`, JSON with a checksum, written by the target alone and read by whoever opens a
replica. Guarantees: `save` returns when the new checkpoint survives a power cut, and a crash at any instant leaves the old or the new
one; a damaged one is an IntegrityError, never a silent restart.

The label is the replica's (design rule 24): *consistent at P*, *not consistent until Q*, or *not consistent* with Q not known.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from cx_consumers.target_chain import ANCHORS, ChainState
from cx_consumers.target_verify import Ended, VerifyState, spans_of, spans_text
from stream.errors import HostoffloadError, IntegrityError, RetryError
from stream.journal import OpenGap
from stream.position import Position
from stream.record import DIGEST_BYTES

FORMAT = 1
CHECKPOINT_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Label:
    """Say whether the replica's bytes are an image of the source at one position; both None: they are not, until an unknown one."""

    consistent_at: Position | None = None
    not_until: Position | None = None

    def __post_init__(self) -> None:
        if self.consistent_at is not None and self.not_until is not None:
            raise ValueError("a replica is consistent or it is not")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a target resumes from: `chain` is what the replica durably has, under the label; `verify` what was proved of it.

    `identity` names the replica's file or device, `sizes` are those it may be found with: one, or those on both sides of a resize that
    a crash may fall into. `retired` means the volume was removed, and that its replica may be gone.
    """

    volume: str
    topic_id: str
    chain: ChainState
    label: Label
    replica_path: str
    identity: str
    sizes: tuple[int, ...]
    retired: bool = False
    verify: VerifyState = field(default_factory=VerifyState)


class CheckpointFile:
    """The place of one volume's checkpoint. One process and thread uses it."""

    def __init__(self, folder: Path, volume: str) -> None:
        self.path = folder / f"{volume}.json"
        self._new = folder / f".{volume}.json.new"
        self._volume = volume

    def load(self) -> Checkpoint | None:
        """Return the checkpoint, None if there never was one. What is returned is durable: whoever wrote it may have been killed between
        the rename and its fsync. Raises IntegrityError if it is damaged, RetryError if it can't be read."""
        try:
            with open(self.path, "rb") as file:
                raw = file.read(CHECKPOINT_BYTES_MAX)
            _sync_folder(self.path.parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RetryError(f"The checkpoint {self.path} can't be read: {error.strerror}", path=self.path) from error
        try:
            checkpoint = _decode(raw)
        except (ValueError, KeyError, TypeError, AttributeError, HostoffloadError) as error:
            raise IntegrityError(
                f"The checkpoint {self.path} is damaged: {error}",
                path=self.path,
                hint="Keep it for inspection; move it away to have the replica made anew from the journal's beginning.",
            ) from error
        if checkpoint.volume != self._volume:
            raise IntegrityError(f"The checkpoint {self.path} is that of volume {checkpoint.volume}", path=self.path, hint="Put it back.")
        return checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint: new file, fsync, rename, fsync of the folder. Raises RetryError; the old one then stands, or the new
        one."""
        try:
            handle = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                raw = memoryview(_encode(checkpoint))
                while raw:
                    raw = raw[os.write(handle, raw) :]
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(self._new, self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            raise RetryError(
                f"The checkpoint {self.path} can't be written: {error.strerror}", path=self.path, hint="Make room, or look at the disk."
            ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _encode(checkpoint: Checkpoint) -> bytes:
    chain, label = checkpoint.chain, checkpoint.label
    body = {
        "format": FORMAT,
        "volume": checkpoint.volume,
        "topic_id": checkpoint.topic_id,
        "kafka_offset": chain.kafka_offset,
        "fence": chain.fence,
        "position": str(chain.position),
        "digest": chain.digest.hex(),
        "open_gaps": [_gap_body(gap) for gap in chain.open_gaps],
        "own_gaps": [_gap_body(gap) for gap in chain.own_gaps],
        "copy_seen": chain.copy_seen,
        "gaps": chain.gaps,
        "size_bytes": chain.size_bytes,
        "anchor": chain.anchor,
        "consistent_at": _text(label.consistent_at),
        "not_until": _text(label.not_until),
        "replica": {"path": checkpoint.replica_path, "identity": checkpoint.identity, "sizes": list(checkpoint.sizes)},
        "retired": checkpoint.retired,
        "verify": _verify_body(checkpoint.verify),
    }
    return json.dumps(body | {"checksum": _checksum(body)}, indent=1).encode() + b"\n"


def _decode(raw: bytes) -> Checkpoint:
    body = json.loads(raw)
    checksum = body.pop("checksum")
    if checksum != _checksum(body):
        raise ValueError("its checksum does not match")
    if body["format"] != FORMAT:
        raise ValueError(f"format {body['format']} is not known here")
    digest = bytes.fromhex(body["digest"])
    if len(digest) != DIGEST_BYTES or body["anchor"] not in ANCHORS:
        raise ValueError("digest or anchor out of range")
    chain = ChainState(
        kafka_offset=body["kafka_offset"],
        fence=body["fence"],
        position=Position.parse(body["position"]),
        digest=digest,
        open_gaps=tuple(_gap(one) for one in body["open_gaps"]),
        own_gaps=tuple(_gap(one) for one in body["own_gaps"]),
        copy_seen=body.get("copy_seen", True),  # the first checkpoints did not ask for it
        gaps=body["gaps"],
        size_bytes=body["size_bytes"],
        anchor=body["anchor"],
    )
    label = Label(_position(body["consistent_at"]), _position(body["not_until"]))
    replica = body["replica"]
    sizes = tuple(int(size) for size in replica["sizes"])
    verify = _verify(body["verify"]) if "verify" in body else VerifyState()  # the first checkpoints had none
    path, identity = replica["path"], replica["identity"]
    return Checkpoint(body["volume"], body["topic_id"], chain, label, path, identity, sizes, body["retired"], verify)


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def _gap_body(gap: OpenGap) -> dict[str, Any]:
    return {"position": str(gap.position), "reason": gap.reason, "begun_at_ns": gap.begun_at_ns}


def _gap(body: dict[str, Any]) -> OpenGap:
    return OpenGap(Position.parse(body["position"]), body["reason"], body["begun_at_ns"])


def _verify_body(verify: VerifyState) -> dict[str, Any]:
    return {
        "mismatches": verify.mismatches,
        "proved_position": _text(verify.proved_position),
        "done": None if verify.done is None else verify.done.told(),
        "ended": [one.told() for one in verify.ended],
        "repairs": spans_text(verify.repairs),
        "unasked": spans_text(verify.unasked),
        "unasked_at": _text(verify.unasked_at),
    }


def _verify(body: dict[str, Any]) -> VerifyState:
    return VerifyState(
        body["mismatches"],
        _position(body["proved_position"]),
        None if body["done"] is None else _ended(body["done"]),
        tuple(_ended(one) for one in body["ended"]),
        spans_of(body["repairs"]),
        spans_of(body["unasked"]),
        _position(body["unasked_at"]),
    )


def _ended(body: dict[str, Any]) -> Ended:
    return Ended(body["round"], Position.parse(body["position"]), body["complete"], body["mismatches"], tuple(body["offsets"]))


def _text(position: Position | None) -> str | None:
    return None if position is None else str(position)


def _position(text: str | None) -> Position | None:
    return None if text is None else Position.parse(text)
