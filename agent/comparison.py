"""Comparison: what the targets have in the extents that a volume owes, asked for by digest (design rule 3).

Capture sets the ring's text `compare_gap` and the word `W_COMPARE` to COMPARE_WANTED; a thread of the publisher asks the target of every
declared replica over `ho.control`, page by page, writes the answers down (`agent.digest_file`) and sets COMPARE_ANSWERED. If one of them
does not answer a page in time, or can't, it is COMPARE_UNANSWERED and nothing counts. A publisher that is killed in the middle begins
again: the word still says what is wanted. Publishing never waits for any of it.
"""

from __future__ import annotations

import base64
import binascii
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from agent import ring as layout
from agent.digest_file import DIGEST_CHUNK_BYTES, DIGESTS_BYTES_MAX, DigestFile, path_of
from agent.extent_list import EXTENTS_MAX, Run, extents_text
from agent.ring import VolumeRing
from stream.control import Answer, Entry, Request
from stream.errors import ConfigError, HostoffloadError, RetryError
from stream.log import event
from stream.position import Position
from stream.record import DIGEST_BYTES

PAGE_BYTES_MAX = 256 << 20
WAIT_S = 0.2
SWEEP_INTERVAL_S = 30.0
_log = logging.getLogger(__name__)


class Exchange(Protocol):
    """What a comparison needs of `ho.control` (`agent.declarations.Declarations`). Thread-safe."""

    def targets(self, volume: str) -> tuple[str, ...] | None:
        """Return the targets of the declared replicas; None if that is not known yet, or the volume is not this agent's."""

    def put(self, entry: Entry) -> None:
        """Write an entry durably. Raises RetryError."""

    def forget(self, key: str) -> None:
        """Delete an entry; not waited for."""

    def answer(self, request_id: str) -> Answer | None:
        """Return the answer to a request, None if there is none yet."""

    def left_over(self, volume: str) -> list[str]:
        """Return the keys of digest requests for the volume, and of their answers, that stand in `ho.control`."""

    def wait(self, timeout_s: float) -> None:
        """Wait until something changed, at most that long."""


class Comparisons:
    """The comparisons that rings ask for, a thread each. `look` is called often, by one thread."""

    def __init__(self, agent: str, exchange: Exchange, wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._agent = agent
        self._exchange = exchange
        self._wait_s = wait_s
        self._clock = clock
        self._threads: dict[str, threading.Thread] = {}
        self._stop = threading.Event()
        self._sweep_at_s = 0.0

    def look(self, rings: Mapping[str, VolumeRing]) -> None:
        """Begin what is wanted and not under way; never blocks."""
        sweep = self._clock() >= self._sweep_at_s
        if sweep:
            self._sweep_at_s = self._clock() + SWEEP_INTERVAL_S
        for volume, ring in rings.items():
            thread = self._threads.get(volume)
            if thread is not None and thread.is_alive():
                continue
            if ring.words[layout.W_COMPARE] == layout.COMPARE_WANTED:
                one = Comparison(ring, self._agent, self._exchange, self._wait_s, self._stop.is_set, self._clock)
                self._threads[volume] = threading.Thread(target=one.run, name=f"compare-{volume}", daemon=True)
                self._threads[volume].start()
            elif sweep:  # answers that came after they were given up
                for key in self._exchange.left_over(volume):
                    self._exchange.forget(key)

    def stop(self, timeout_s: float = 1.0) -> None:
        """Stop; what is wanted stays wanted."""
        self._stop.set()
        for thread in self._threads.values():
            thread.join(timeout_s)


class Comparison:
    """One comparison of one volume, for the gap that its ring names now."""

    def __init__(
        self, ring: VolumeRing, agent: str, exchange: Exchange, wait_s: float, stopped: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        self._ring = ring
        self._volume = ring.text("volume")
        self._gap = ring.text("compare_gap")
        self._agent = agent
        self._exchange = exchange
        self._wait_s = wait_s
        self._stopped = stopped
        self._clock = clock
        self._run_id = secrets.token_hex(4)  # an answer to a former run may be about other extents

    def run(self) -> None:
        """Ask, write down, and tell capture; without a word if it is not wanted any more."""
        began_s = self._clock()
        try:
            answered = self._compare()
        except (HostoffloadError, OSError) as error:
            event(_log, logging.WARNING, "comparison_failed", volume=self._volume, position=self._gap, error=error)
            answered = False
        except Exception:  # our bug: everything is sent
            _log.exception("comparison_crashed")
            answered = False
        if answered is None or self._over:
            return
        self._ring.words[layout.W_COMPARE] = layout.COMPARE_ANSWERED if answered else layout.COMPARE_UNANSWERED
        took_s = round(self._clock() - began_s, 3)
        event(_log, logging.INFO, "compared", volume=self._volume, position=self._gap, answered=answered, took_s=took_s)

    @property
    def _over(self) -> bool:
        """Tell whether nobody wants this comparison any more."""
        ring = self._ring
        wanted = ring.words[layout.W_COMPARE] == layout.COMPARE_WANTED and ring.text("compare_gap") == self._gap
        return self._stopped() or not wanted or bool(ring.words[layout.W_FENCED]) or not ring.memory.current

    def _compare(self) -> bool | None:
        """Return whether every target answered everything; None if it is over before that."""
        targets = self._exchange.targets(self._volume)
        while targets is None:
            if self._over:
                return None
            self._exchange.wait(WAIT_S)
            targets = self._exchange.targets(self._volume)
        gap, path = Position.parse(self._gap), path_of(self._ring.path.parent, self._volume)
        path.unlink(missing_ok=True)  # what stands there answered another gap
        if not targets or not self._wait_s:
            return False
        for key in self._exchange.left_over(self._volume):
            self._exchange.forget(key)
        with DigestFile(path, gap) as file:
            for number, extents in enumerate(pages(self._ring)):
                answers = self._ask(number, extents, targets, gap)
                if answers is None:
                    return None if self._over else False
                file.add(chunks(extents), answers)
                if file.size_bytes >= DIGESTS_BYTES_MAX:
                    event(_log, logging.WARNING, "comparison_cut", volume=self._volume, bytes=extents[-1][1], of=self._ring.size_bytes)
                    break
            if self._over:
                return None
            file.finish()
        return True

    def _ask(self, number: int, extents: Sequence[Run], targets: Sequence[str], gap: Position) -> list[bytes] | None:
        """Return every target's digests of one page; None if one does not answer in time, or can't."""
        requests = {
            target: Request(
                f"digest-{self._volume}-{gap}-{target}-{self._run_id}.{number}",
                "digest",
                self._volume,
                {"target": target, "gap": str(gap), "extents": extents_text(extents)},
                f"publisher/{self._agent}",
                time.time_ns(),
            )
            for target in targets
        }
        deadline_s = self._clock() + self._wait_s
        untold, answers = dict(requests), dict[str, bytes]()
        count = sum(1 for _ in chunks(extents))
        try:
            while len(answers) < len(requests):
                if self._over or self._clock() >= deadline_s:
                    return None
                self._put(untold)
                for target, request in requests.items():
                    if target not in answers and (answer := self._exchange.answer(request.id)) is not None:
                        answers[target] = digests_of(answer, count, gap)
                if len(answers) < len(requests):
                    self._exchange.wait(min(WAIT_S, max(0.0, deadline_s - self._clock())))
            return [answers[target] for target in targets]
        finally:
            for request in requests.values():
                self._exchange.forget(request.key)
                self._exchange.forget(f"answer/{request.id}")

    def _put(self, untold: dict[str, Request]) -> None:
        """Put the requests that are not in `ho.control` yet; what can't be put now stays for the next time."""
        for target, request in list(untold.items()):
            try:
                self._exchange.put(request)
            except RetryError:
                return
            del untold[target]


def pages(ring: VolumeRing) -> Iterator[list[Run]]:
    """Yield what the ring owes, as lists of extents that one request may name."""
    at, size, page = 0, 0, list[Run]()
    while at < ring.size_bytes and (run := ring.next_owed(at, PAGE_BYTES_MAX - size)) is not None:
        page.append(run)
        at, size = run[1], size + run[1] - run[0]
        if size >= PAGE_BYTES_MAX or len(page) == EXTENTS_MAX:
            yield page
            size, page = 0, []
    if page:
        yield page


def chunks(extents: Sequence[Run]) -> Iterator[int]:
    """Yield where the chunks of these extents begin."""
    for start, end in extents:
        yield from range(start, end, DIGEST_CHUNK_BYTES)


def digests_of(answer: Answer, count: int, gap: Position) -> bytes:
    """Return the digests of an answer about so many chunks. Raises ConfigError for one that can't be used."""
    told = answer.attributes
    if not answer.done:
        raise ConfigError(f"{answer.answered_by or 'A target'} can't compare: {told.get('error', 'it does not say why')}")
    try:
        position, digests = Position.parse(told.get("position", "")), base64.b64decode(told.get("digests", ""), validate=True)
    except (ConfigError, binascii.Error, ValueError) as error:
        raise ConfigError(f"{answer.answered_by} answers with what is no digest: {error}") from error
    if len(digests) != count * DIGEST_BYTES:
        raise ConfigError(f"{answer.answered_by} answers with {len(digests)} bytes, {count * DIGEST_BYTES} are due")
    if position.sequence + 1 < gap.sequence:
        raise ConfigError(f"{answer.answered_by} has applied up to {position} only, the gap is at {gap}")
    return digests
