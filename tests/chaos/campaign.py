"""One campaign: bring the product up, put load on it, do what the plan says, let it heal, and compare.

The order at the end: everything that was stopped goes on, `up` once more, the load must still make progress, it stops, every volume must
get in sync by itself, and source, replica and stream must be the same bytes.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import topic, verdict
from tests.chaos.load import Exported, Load
from tests.chaos.plan import PROCESSES, Episode, plan
from tests.chaos.product import Faults, Product, well
from tests.chaos.topic import Stream
from tests.chaos.watch import Watch
from tests.e2e.system import make_source

VOLUMES = {"chaos-a": "local", "chaos-b": "stream"}
"""The volumes, and what a flush of each waits for."""
SIZE_BYTES = 128 << 20
USED_BYTES = 8 << 20
SETTLE_S_MAX = 120.0
PROGRESS_S_MAX = 60.0
SYNC_S_MAX = 240
LAST_LOAD_S = 3.0
SALVO_S_MAX = 0.04  # about what 16 MiB take from the client to the disk
COMPARED_BYTES = 1 << 20
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for; the same wish does the same faults."""

    seed: int
    seconds: float
    kills: int
    faults: tuple[str, ...]
    buffer_bytes: int

    def again(self) -> str:
        """Return the one line that repeats it."""
        mib = self.buffer_bytes >> 20
        return f"make chaos SEED={self.seed} SECONDS={self.seconds:g} KILLS={self.kills} FAULTS={','.join(self.faults)} BUFFER_MIB={mib}"


@dataclass(slots=True)
class Outcome:
    """What came out: `facts` for table and JSON, `failures` in sentences; none: all holds."""

    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Campaign:
    """Run a wish in a folder of its own."""

    def __init__(self, wish: Wish, folder: Path, say: Say) -> None:
        self.wish, self.folder, self.say = wish, folder, say
        self.outcome = Outcome({"seed": wish.seed, "again": wish.again(), "kills": 0, "bytes_differ": None, "resyncs_after_innocent": None})
        environment = {"HOSTOFFLOAD_AGENT_BUFFER_BYTES_MAX": str(wish.buffer_bytes), "HOSTOFFLOAD_AGENT_NAME": "chaos"}
        self._product = Product(folder, environment)
        self._volumes: list[Exported] = []
        self._dice = random.Random(wish.seed)

    def run(self) -> Outcome:
        """Do it all; the product is down afterwards, whatever happened."""
        try:
            self._product.up()
            self._volumes = [self._add(name) for name in VOLUMES]
            for volume in self._volumes:
                self._product.wait_in_sync(volume.name)
            self._under_load()
        except AssertionError as error:
            self._fail(f"the campaign broke off: {error}")
        finally:
            self._end()
        return self.outcome

    def _fail(self, sentence: str) -> None:
        self.say(f"FAILURE {sentence}")
        self.outcome.failures.append(sentence)

    def _under_load(self) -> None:
        watch = self._product.watched()
        faults = Faults(self._product, watch, self._port())
        load = Load(self._volumes, self.folder, self.wish.seed)
        try:
            ends = self._do_all(faults, watch, load)
            self._heal(faults, watch, load)
        finally:
            written, failures = load.stop()
        self.outcome.facts["load"] = written
        for failure in failures:
            self._fail(f"a client failed: {failure}")
        self._wait_in_sync()
        watch.close()
        for failure in watch.failures:
            self._fail(failure)
        streams = self._compare(load)
        self._judge(watch, faults, ends, streams)

    # -- faults --------------------------------------------------------------------------------------------------------

    def _do_all(self, faults: Faults, watch: Watch, load: Load) -> list[float]:
        """Carry the plan out; return when each episode's faults were over."""
        began_s, ends = time.monotonic(), []
        self._product.operator.start()
        for episode in plan(self.wish.seed, self.wish.seconds, self.wish.kills, self.wish.faults):
            time.sleep(max(0.0, began_s + episode.at_s - time.monotonic()))
            if episode.settle:
                self._settle(faults, watch)
            ends.append(self._episode(episode, faults, load, began_s))
        self.outcome.facts["seconds"] = round(time.monotonic() - began_s, 1)
        return ends

    def _episode(self, episode: Episode, faults: Faults, load: Load, began_s: float) -> float:
        until = time.time()
        for fault in episode.faults:
            time.sleep(fault.after_s)
            if (fault.kind, fault.process) == ("kill", "capture"):
                load.fire()
                time.sleep(self._dice.uniform(0.0, SALVO_S_MAX))
            done = faults.act(fault)
            self.say(f"{time.monotonic() - began_s:6.1f} s  {fault}" + ("" if done is not None else ": does not run, passed over"))
            until = max(until, done.until) if done is not None else until
        self._product.operator.up(episode.up_after_s)
        return until

    def _settle(self, faults: Faults, watch: Watch) -> None:
        """Wait until everything is well again; that must happen by itself and `up`."""
        faults.heal()
        deadline_s = time.monotonic() + SETTLE_S_MAX
        since = time.time()
        while not (watch.newest().at > since and well(watch.newest(), PROCESSES)):
            if time.monotonic() > deadline_s:
                self._fail(f"{SETTLE_S_MAX:.0f} s after the last fault it is still not well: {watch.newest()}")
                return
            time.sleep(0.1)

    def _heal(self, faults: Faults, watch: Watch, load: Load) -> None:
        """Let it come back, and see that all of it works."""
        faults.heal()
        self._product.operator.close()
        self._product.up()
        self._settle(faults, watch)
        for stuck in load.wait_progress(PROGRESS_S_MAX):
            self._fail(f"it writes no more after all is well: {stuck}")
        time.sleep(LAST_LOAD_S)

    # -- what came out -------------------------------------------------------------------------------------------------

    def _wait_in_sync(self) -> None:
        for volume in self._volumes:
            status = self._product.wait_in_sync(volume.name, SYNC_S_MAX)
            if status["mode"] != "DATA" or not status["captured_bytes"]:
                self._fail(f"{volume.name} is in mode {status['mode']}, {status['captured_bytes']} bytes captured")

    def _compare(self, load: Load) -> dict[str, Stream]:
        """Compare source, replica, stream and ledger; return the streams."""
        differ, streams = 0, {}
        for volume in self._volumes:
            count, first = difference(volume.source.read_bytes(), volume.replica.read_bytes())
            differ += count
            if count:
                self._fail(f"{volume.name}: {count} bytes differ between source and replica, the first at {first}")
            streams[volume.name] = stream = topic.fold(self._bootstrap(), volume.name, volume.size_bytes)
            count, first = difference(volume.source.read_bytes(), stream.image)
            if count:
                self._fail(f"{volume.name}: {count} bytes differ between source and stream, the first at {first}")
            for hole in stream.holes:
                self._fail(f"{volume.name}: a hole in the stream: {hole}")
            for gap in topic.journal_gaps(self._bootstrap(), volume.name):
                self._fail(f"{volume.name}: the journal has a gap: {gap['reason']}, {gap['missing']}")
        for ledger in load.ledgers:
            if lost := ledger.lost(ledger.volume.source):
                self._fail(f"{ledger.volume.name}: {lost} blocks lost an acknowledged write")
        self.outcome.facts["bytes_differ"] = differ
        return streams

    def _judge(self, watch: Watch, faults: Faults, ends: list[float], streams: dict[str, Stream]) -> None:
        facts, done = self.outcome.facts, faults.done
        timeline = {"faults": [asdict(one) for one in done], "samples": [asdict(one) for one in watch.samples]}
        (self.folder / "timeline.json").write_text(json.dumps(timeline, indent=0))
        charges = verdict.charge(watch.samples, done)
        for name, stream in streams.items():
            verdict.charge_marks(stream.announced, done, charges, name)
        facts["faults"] = {kind: dict(met) for kind, met in verdict.by_process(done).items()}
        facts["passed_over"] = [str(one) for one in faults.missed]
        facts["kills"] = sum(1 for one in done if one.kind == "kill")
        facts["copies"] = {who: {"times": times, "bytes": charges.bytes[who]} for who, times in charges.times.items()}
        facts["resyncs_after_innocent"] = sum(charges.times[who] for who in verdict.INNOCENT)
        facts["gaps"] = topic.gaps_by_reason(list(streams.values()))
        facts["stream"] = {name: one.counts() for name, one in streams.items()}
        facts["marks"] = {name: [asdict(one) for one in stream.announced] for name, stream in streams.items()}
        facts["away_from_data"] = verdict.spread(verdict.away_from_data(watch.samples))
        facts["caught_up"] = verdict.spread(verdict.caught_up(watch.samples, ends))
        facts["up"] = [{"code": code, "seconds": round(seconds, 1), "said": said} for code, seconds, said in self._product.operator.ended]
        for sentence in verdict.broken(self.wish.kills, done, charges, facts["gaps"]):
            self._fail(sentence)

    # -- before and after ----------------------------------------------------------------------------------------------

    def _add(self, name: str) -> Exported:
        source = make_source(self.folder / f"{name}.img", SIZE_BYTES, USED_BYTES)
        uri = self._product.add(name, source, "--flush-policy", VOLUMES[name])
        return Exported(name, uri, source, self._product.replica(source), SIZE_BYTES)

    def _end(self) -> None:
        """Bring it down; nothing may be left, and nobody may have written a traceback."""
        rings: set[Path] = set()
        try:
            rings = {Path(one["ring"]).parent for one in self._product.facts()["volumes"] if one["ring"]}
            self._product.down()
        except AssertionError as error:
            self._fail(f"`status` or `down` failed: {error}")
        for pid in self._product.left():
            self._fail(f"process {pid} is left after `down`")
        for trace in self._product.traces():
            self._fail(f"a traceback in {trace}")
        for ring in rings:
            shutil.rmtree(ring, ignore_errors=True)

    def _bootstrap(self) -> str:
        return self._product.facts()["broker"]["bootstrap"]

    def _port(self) -> int:
        return int(self._bootstrap().rpartition(":")[2])


def difference(one: bytes, other: bytes | bytearray) -> tuple[int, int | None]:
    """Return how many bytes differ, and the first one's offset; a length that differs counts."""
    count, first = abs(len(one) - len(other)), None
    for at in range(0, min(len(one), len(other)), COMPARED_BYTES):
        left, right = one[at : at + COMPARED_BYTES], other[at : at + COMPARED_BYTES]
        if left != right:
            places = [index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b]
            first = at + places[0] if first is None and places else first
            count += len(places)
    return count, first
