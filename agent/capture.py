"""The capture process: NBD server, rings and copiers of all volumes of this host. It has no Kafka client.

Started by the supervisor (or `agent run`) with the listening sockets. A thread a connection; one keeper (the main thread) that
follows the declared volumes, gives back memory, beats hearts and reports; one thread that hears the publisher's bell.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from pathlib import Path

from agent import activity_log
from agent import declared as declared_file
from agent.activity_log import ActivityLog
from agent.allocator import ChunkAllocator
from agent.bookmarker import Bookmarker
from agent.bookmarks import BookmarkFile
from agent.declared import Declared
from agent.doorbell import Doorbell
from agent.listener_tls import listener_tls
from agent.memory import make_folder
from agent.pool import WORD_CAPTURE_WAITS, Pool, pool_chunks
from agent.record_log import RecordLog
from agent.ring import W_ACKED, W_HEAD, VolumeRing
from agent.scratch import Scratch
from agent.served import ServedVolume
from agent.source import lock_file
from agent.volume import Volume
from nbd.exports import ExportTable
from nbd.server import Server
from stream.config import Config, host_name
from stream.control import VolumeDeclaration
from stream.errors import HostoffloadError, IntegrityError
from stream.log import Repeats, event
from stream.position import ZERO
from stream.report import Reporter

KEEPER_INTERVAL_S = 0.05
REPORT_INTERVAL_S = 0.25
RETRY_INTERVAL_S = 2.0
FIRST_SERVED_S_MAX = 5.0
DRAIN_S_MAX = 10.0
SWEEP_INTERVAL_S = 1.0
LET_GO_S = 5.0  # a publisher looks for rings that are gone ten times a second
_log = logging.getLogger(__name__)


def run(config: Config, state_dir: Path, ring_dir: Path, listen_fds: list[int]) -> int:
    """Serve until SIGTERM or SIGINT, then stop in order; return the exit code. Raises ConfigError for a held state folder."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    lock_file(state_dir / "agent" / "capture.lock", f"The agent's state folder {state_dir}")
    make_folder(ring_dir)
    capture = Capture(config, state_dir, ring_dir, [socket.socket(fileno=fd) for fd in listen_fds])
    try:
        capture.serve(stop)
    finally:
        capture.close()
    return 0


class Capture:
    """All volumes of this host, brought up and down as they are declared."""

    def __init__(self, config: Config, state_dir: Path, ring_dir: Path, sockets: list[socket.socket]) -> None:
        self._settings = config.agent
        self._state_dir = state_dir
        self._ring_dir = ring_dir
        self._name = config.agent.name or host_name()
        self._pool = self._open_pool()
        self._to_publisher = Doorbell(ring_dir / "publisher.bell")
        self._from_publisher = Doorbell(ring_dir / "capture.bell")
        self._logs: dict[str, RecordLog] = {}
        self._leaving: list[tuple[float, RecordLog]] = []
        held = self._held()
        self._allocator = ChunkAllocator(self._pool.count, set().union(*held.values()), self._reclaim, self._wait_for_room)
        self._adopt_logs(held)
        self._bookmarker = Bookmarker(BookmarkFile(state_dir), [log.ring for log in self._logs.values()], self._find)
        self._scratch = Scratch()
        self._served: dict[str, ServedVolume] = {}
        self._errors: dict[str, str] = {}
        self._retry_at_s: dict[str, float] = {}
        self._declared = Declared()
        self._declared_stamp = 0
        self._table = ExportTable()
        tls = listener_tls(self._settings)
        self._server = Server(self._table, sockets, connections_max=self._settings.connections_max, tls=tls)
        self._reporter = Reporter(state_dir, "capture", self._name, None)
        self._listener = threading.Thread(target=self._listen, name="publisher-bell", daemon=True)
        self._sweeper = threading.Thread(target=self._sweep, name="activity-sweep", daemon=True)
        self._repeats = Repeats()
        self._accepting = False
        self._over = False

    def serve(self, stop: threading.Event) -> None:
        """Keep everything going until `stop`."""
        self._listener.start()
        self._sweeper.start()
        began_s = time.monotonic()
        next_report_s = 0.0
        while not stop.wait(KEEPER_INTERVAL_S):
            now_s = time.monotonic()
            self._follow()
            for served in list(self._served.values()):
                if served.step():
                    self._table.add(served.name, served.device)
                served.tend(now_s, self._settings.heartbeat_s)
            self._reclaim()
            self._let_go(now_s)
            if not self._accepting and (self._all_up() or now_s - began_s > FIRST_SERVED_S_MAX):
                self._server.start()  # not before: a client that reconnects waits in the backlog instead of being refused
                self._accepting = True
            if now_s >= next_report_s:
                next_report_s = now_s + REPORT_INTERVAL_S
                self._report()

    def close(self) -> None:
        """Stop in order: clients first, then each volume; what could not be drained stays in the rings."""
        self._over = True
        self._bookmarker.stop()
        if self._accepting:
            self._server.stop()
        deadline_s = time.monotonic() + DRAIN_S_MAX
        for served in self._served.values():
            served.stop(deadline_s)
        self._allocator.close()
        self._report()
        self._give_memory_back()

    # -- volumes -------------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Bring up what is declared, take down what is not; try again what failed."""
        path = declared_file.path_of(self._state_dir)
        try:
            stamp = path.stat().st_mtime_ns
            if stamp != self._declared_stamp:
                self._declared = declared_file.read(path)
                self._declared_stamp = stamp
                self._forget_removed()
                self._bookmarker.ask(self._declared.bookmarks)
        except FileNotFoundError:
            return
        for declaration in self._declared.volumes:
            served = self._served.get(declaration.volume)
            if declaration.state == "active" and served is None:
                self._bring_up(declaration)
            elif declaration.state != "active" and served is not None:
                self._take_down(served, forget=declaration.state == "removed")
            elif declaration.state != "active":
                self._errors.pop(declaration.volume, None)
            elif served is not None and served.outdated(declaration):
                self._take_down(served, forget=False)
            elif served is not None:
                self._hand_over_requests(served)
        self._let_others_have(self._declared.moved)

    def _let_others_have(self, moved: dict[str, str]) -> None:
        """Stop serving what the operator gave to another agent, so that it finds the source free (design rule 19)."""
        for name, agent in moved.items():
            served = self._served.get(name)
            if served is not None:
                served.fence(f"the agent {agent} has taken the volume over")
                self._take_down(served, forget=False)
                self._refuse(name, f"fenced: the agent {agent} has taken the volume over")

    def _hand_over_requests(self, served: ServedVolume) -> None:
        """Have what is asked of the volume written down; what can't be now is tried again."""
        try:
            for asked in self._declared.resyncs.get(served.name, ()):
                served.request_sync(asked)
            for round_id in self._declared.verifies.get(served.name, ()):
                served.request_verify(round_id)
        except OSError as error:
            self._repeats.event(_log, logging.ERROR, "request_not_written_down", volume=served.name, error=error.strerror)

    def _bring_up(self, declaration: VolumeDeclaration) -> None:
        name, now_s = declaration.volume, time.monotonic()
        if now_s < self._retry_at_s.get(name, 0.0):
            return
        self._retry_at_s[name] = now_s + RETRY_INTERVAL_S
        try:
            self._served[name] = ServedVolume(
                declaration, self._state_dir, self._ring_dir, self._make_log, self._settings, self._scratch
            )
            self._errors.pop(name, None)
        except HostoffloadError as error:
            self._refuse(name, f"{error.sentence}. {error.hint}")
        except OSError as error:
            self._refuse(name, f"The volume can't be opened: {error}")

    def _find(self, name: str) -> Volume | None:
        """Return the volume if it is served."""
        served = self._served.get(name)
        return served.volume if served is not None and served.serving else None

    def _refuse(self, name: str, told: str) -> None:
        if self._errors.get(name) != told:
            event(_log, logging.ERROR, "volume_not_served", volume=name, error=told)
        self._errors[name] = told

    def _take_down(self, served: ServedVolume, *, forget: bool) -> None:
        self._table.remove(served.name)
        self._server.disconnect(served.name)
        served.stop(time.monotonic() + DRAIN_S_MAX)
        del self._served[served.name]
        self._retry_at_s.pop(served.name, None)
        if forget:
            self._forget(served.name)

    def _forget_removed(self) -> None:
        """Remove what is left of volumes that were removed while nobody served them."""
        for declaration in self._declared.volumes:
            if declaration.state == "removed" and declaration.volume not in self._served:
                self._forget(declaration.volume)

    def _forget(self, name: str) -> None:
        """Remove ring and clean-stop marker of a volume that is protected no more."""
        self._ring_path(name).unlink(missing_ok=True)
        ActivityLog.remove(activity_log.path_of(self._state_dir, name))
        self._bookmarker.forget(name)
        self._allocator.leave(name)
        if name in self._logs:
            self._leaving.append((time.monotonic() + LET_GO_S, self._logs.pop(name)))

    def _make_log(self, ring: VolumeRing) -> RecordLog:
        """Return the log of this ring: the one that is there, whose memory is still accounted for, or a new one."""
        name = ring.path.stem
        log = self._logs.get(name)
        if log is not None and log.ring.memory.same_file(ring.memory):
            log.failure = None
            return log
        if log is not None:
            self._leaving.append((time.monotonic() + LET_GO_S, log))
        self._logs[name] = RecordLog(ring, self._pool, self._allocator, self._to_publisher.ring)
        self._allocator.join(name)
        return self._logs[name]

    def _ring_path(self, name: str) -> Path:
        return self._ring_dir / f"{name}.ring"

    def _all_up(self) -> bool:
        """Tell whether every declared volume that can be served is."""
        wanted = {one.volume for one in self._declared.volumes if one.state == "active"}
        up = {name for name, one in self._served.items() if one.serving}  # one whose stream was lost at once is taken down, and comes again
        return self._declared_stamp != 0 and wanted <= up | self._errors.keys()

    # -- memory --------------------------------------------------------------------------------------------------------

    def _open_pool(self) -> Pool:
        path, chunks = self._ring_dir / "pool", pool_chunks(self._settings.buffer_bytes_max)
        try:
            pool = Pool.open(path, chunks)
            if pool.count == chunks:
                return pool
            pending = any(self._pending(ring_path) for ring_path in self._ring_dir.glob("*.ring"))
            if pending:
                event(_log, logging.WARNING, "buffer_size_kept", chunks=pool.count, wanted=chunks, reason="records wait in the old buffer")
                return pool
        except IntegrityError as error:
            event(_log, logging.ERROR, "pool_discarded", reason=error)
            for ring_path in self._ring_dir.glob("*.ring"):
                ring_path.unlink()
        path.unlink()
        return Pool.open(path, chunks)

    def _give_memory_back(self) -> None:
        """Remove the pool if nothing waits in it, and the folder if no volume has a ring in it any more."""
        rings = list(self._ring_dir.glob("*.ring"))
        if any(self._pending(path) for path in rings):
            return
        self._pool.memory.path.unlink(missing_ok=True)
        if not rings:
            for path in self._ring_dir.iterdir():
                path.unlink()
            self._ring_dir.rmdir()

    def _pending(self, path: Path) -> bool:
        try:
            ring = VolumeRing.attach(path)
        except (OSError, IntegrityError):
            return False
        return ring.words[W_HEAD] != ring.words[W_ACKED]

    def _held(self) -> dict[Path, set[int]]:
        """Return the chunks that the rings left by a former process need."""
        held: dict[Path, set[int]] = {}
        for path in self._ring_dir.glob("*.ring"):
            try:
                held[path] = VolumeRing.attach(path).chunks_held(self._pool.view)
            except (OSError, IntegrityError) as error:
                event(_log, logging.ERROR, "ring_discarded", path=path, reason=error)
                path.unlink(missing_ok=True)
        return held

    def _adopt_logs(self, held: dict[Path, set[int]]) -> None:
        """Take over the memory of every ring, declared or not, so that it comes back as Kafka acknowledges."""
        for path, chunks in held.items():
            self._allocator.join(path.stem, chunks)
            self._logs[path.stem] = RecordLog(VolumeRing.attach(path), self._pool, self._allocator, self._to_publisher.ring, chunks)

    def _reclaim(self) -> None:
        for log in (*self._logs.values(), *(log for _, log in self._leaving)):
            log.reclaim()

    def _let_go(self, now_s: float) -> None:
        """Free what rings held that are gone, once the publisher must have noticed that they are."""
        for one in [one for one in self._leaving if one[0] <= now_s]:
            one[1].discard()
            self._leaving.remove(one)

    def _wait_for_room(self, waiting: bool) -> None:
        if waiting:
            self._pool.words[WORD_CAPTURE_WAITS] = 1

    def _listen(self) -> None:
        """Hear the publisher: Kafka has more, so memory and flushes can go on."""
        while not self._over:
            if self._from_publisher.wait():
                self._reclaim()
                for served in list(self._served.values()):
                    served.volume.log.acknowledged()

    def _sweep(self) -> None:
        """Clear activity logs: on a thread of its own, because a sweep flushes sources."""
        while not self._over:
            time.sleep(SWEEP_INTERVAL_S)
            for served in list(self._served.values()):
                try:
                    served.sweep(time.monotonic())
                except OSError as error:
                    self._repeats.event(_log, logging.ERROR, "activity_log_not_swept", volume=served.name, error=error.strerror)

    def _report(self) -> None:
        told = {name: served.facts() for name, served in self._served.items()}
        for name, error in self._errors.items():
            told[name] = (ZERO, {"serving": False, "mode": "OFFLINE", "mode_reason": "not served", "error": error})
        try:
            self._reporter.report(told)
        except OSError as error:  # a full disk must not end the capture
            self._repeats.event(_log, logging.ERROR, "report_not_written", error=error.strerror)
