"""Publishing one volume: from its ring to its Kafka topic, in order, without a hole.

The publisher's main thread calls `publish` for every volume; a Kafka thread a volume claims the epoch, serves the delivery
reports and replaces a producer that failed. What is acknowledged is a prefix: a report counts only if its first position
follows the last one counted and its kafka_offset follows the previous one; else what lies between is read first (design rule
18), which is how an agent learns that it is fenced. The ring is released by this prefix alone.

A failed producer is thrown away: the log's end is read, what is there of ours is counted, and everything after it is published
again with the same positions. `error` says what is wrong until something is acknowledged again. A message refused for its size comes
again in smaller ones (`agent.messages`), never unchanged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from agent import ring as layout
from agent.backlog import Backlog
from agent.claim import check_untaken, claim, fenced, find_epoch_start, headers, is_counted, recount
from agent.in_flight import InFlight
from agent.lag import Lag
from agent.messages import collect
from agent.pool import Pool
from agent.refusals import Refusals
from agent.ring import VolumeRing
from stream.codec import encode_writes
from stream.config import KafkaConfig
from stream.consumer import PartitionReader
from stream.control import EpochClaim
from stream.errors import ConfigError, FencedError, HostoffloadError, IntegrityError, ResyncError, RetryError, TooLargeError
from stream.log import Repeats, event
from stream.position import Position
from stream.producer import IN_FLIGHT_REQUESTS_MAX, MESSAGES_JOINED_MAX, OrderedProducer
from stream.topics import Topics, writes_topic

POLL_S = 0.1
BACKOFF_S = 0.05
BACKOFF_S_MAX = 2.0
_log = logging.getLogger(__name__)


class Publication:
    """Publish one volume. `acknowledged()` is called whenever Kafka has more; `announce(EpochClaim)` before a claim, `claimed` after it."""

    def __init__(
        self,
        config: KafkaConfig,
        agent: str,
        ring: VolumeRing,
        pool: Pool,
        in_flight: InFlight,
        acknowledged: Callable[[], None],
        announce: Callable[[EpochClaim], None],
        claimed: Callable[[EpochClaim], None],
        newest_claim: Callable[[str], int],
        claimant: Callable[[str], str],
    ) -> None:
        self.ring = ring
        self.volume = ring.text("volume")
        self.lag = Lag(ring, pool.view)
        self._backlog = Backlog(ring, pool.view)
        self._unpublished: str | None = None
        self._refused: str | None = None
        self._config = config
        self._agent = agent
        self._pool = pool.view
        self._words = ring.words
        self._in_flight = in_flight
        self._acknowledged = acknowledged
        self._announce = announce
        self._claimed = claimed
        self._newest_claim = newest_claim
        self._claimant = claimant
        self._sent = self._words[layout.W_ACKED]
        self._flying = self._flying_bytes = 0
        self._since_s = time.monotonic()
        self._producer: OrderedProducer | None = None
        self._refusals = Refusals(config, writes_topic(self.volume))
        self._backoff_s = BACKOFF_S
        self.look_again = threading.Event()  # set by who sees that the topic is not what it was: the Kafka thread begins anew
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._repeats = Repeats()
        self._thread = threading.Thread(target=self._run, name=f"kafka-{self.volume}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop; what is not acknowledged stays in the ring."""
        self._stop.set()
        self._thread.join(timeout_s)

    @property
    def error(self) -> str | None:
        """What keeps this volume's records from Kafka, as a sentence and a hint; None if nothing is known to."""
        return self._unpublished or self._refused

    @property
    def fenced(self) -> bool:
        return bool(self._words[layout.W_FENCED])

    @property
    def drained(self) -> bool:
        return self._words[layout.W_ACKED] == self._words[layout.W_HEAD]

    @property
    def held_back(self) -> bool:
        """Tell whether Kafka is to take no more before it acknowledges something.

        librdkafka never gets more messages than it may send at once: its thread spins while others queue behind those, which cost
        more than all the rest of publishing. What waits in the ring instead is joined into larger batches. One message of each volume may
        always be on its way: else some volumes that Kafka refuses would hold up all others.
        """
        return self._flying >= IN_FLIGHT_REQUESTS_MAX or (self._flying > 0 and self._in_flight.full)

    @property
    def stalled_s(self) -> float:
        """How long something has been on its way to Kafka without any acknowledgement."""
        with self._mutex:
            return time.monotonic() - self._since_s if self._flying else 0.0

    def tell_stall(self, error: HostoffloadError) -> None:
        """Hear why nothing is acknowledged; forgotten when something is."""
        if self.stalled_s:
            self._fail(error)

    # -- the publisher's main thread -----------------------------------------------------------------------------------

    def publish(self) -> int:
        """Give Kafka what the ring has and the limit allows; return the bytes given. Never blocks.

        A ring that can't be read stops this volume alone, until it is attached anew (design rule 22).
        """
        try:
            given = self._publish()
        except IntegrityError as error:
            self._unpublished = self._stated(error)
            return 0
        except Exception as error:  # our bug: as for a ring that can't be read
            if self._unpublished is None:
                _log.exception("publication_crashed")
            self._unpublished = self._stated(RetryError(f"Publishing failed: {error!r}", volume=self.volume))
            return 0
        self._unpublished = None
        return given

    def _publish(self) -> int:
        given = 0
        with self._mutex:  # held throughout: what is not acknowledged stays where it is
            producer = self._producer
            head = self._words[layout.W_HEAD]
            self._sent = max(self._sent, self._words[layout.W_ACKED])
            while producer is not None and self._sent < head and not self.held_back and not self.fenced:
                batch, pieces = collect(self.ring, self._pool, self._sent + 1, head, self._refusals.limit)
                incarnation = self._incarnation()
                value = encode_writes(batch, incarnation, pieces)
                first, last = batch.first_sequence, batch.first_sequence + batch.count - 1
                tag = (first, last, len(value), sum(map(len, pieces)))
                try:
                    producer.produce(value, headers(self.volume, batch.epoch, first, last, incarnation), tag, key=self.volume)
                except (BufferError, HostoffloadError):
                    break  # full: later; poisoned: the Kafka thread hears it too, and replaces the producer
                self._sent = self._words[layout.W_SENT] = last
                if not self._flying:
                    self._since_s = time.monotonic()
                self._flying += 1
                self._flying_bytes += len(value)
                self._in_flight.add(len(value))
                self.lag.given(first, batch.capture_time_ns)
                given += len(value)
        return given

    def rewind(self, sequence: int) -> bool:
        """Publish again from `sequence` on, if the ring still has it; tell whether it has (design rule 20)."""
        with self._mutex:
            if not self._words[layout.W_ACKED] < sequence <= self._words[layout.W_HEAD]:
                return False
            self._sent = min(self._sent, sequence - 1)
            return True

    # -- the Kafka thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set() and not self.fenced:
            if self._words[layout.W_CLAIMED] != layout.CLAIM_DONE and self._words[layout.W_CLEAN] == layout.CLEAN_UNKNOWN:
                self._stop.wait(BACKOFF_S)  # capture has just made the ring: what it believes is not in it yet
                continue
            try:
                self._begin()
                self._serve()
            except FencedError as error:
                self._words[layout.W_FENCED] = 1
                self._fail(error)
                self._close()
                return
            except TooLargeError as error:
                self._fail(self._refusals.take(error, self._producer.refused if self._producer is not None else None))
            except HostoffloadError as error:
                self._fail(error)
            except Exception as error:  # our bug: this volume stands still and says so, the others go on
                _log.exception("publication_crashed")
                self._fail(RetryError(f"Publishing failed: {error!r}", volume=self.volume))
            self._close()
            self._refusals.wait(self._stop)
            self._stop.wait(self._backoff_s)
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_S_MAX)

    def _begin(self) -> None:
        """Claim an epoch if there is none, find our place in the log, open a producer."""
        if self._words[layout.W_CLAIMED] != layout.CLAIM_DONE:
            self._claim()
        self._recount()
        self._tell_claim()
        self._open()
        if self.drained:
            self._be_well()  # else an acknowledgement says so

    def _serve(self) -> None:
        """Serve the producer's reports until stopped, fenced or asked to look again."""
        self.look_again.clear()
        while not self._stop.is_set() and not self.look_again.is_set():
            if self.fenced:  # capture heard of it
                raise fenced(self.volume, self._words[layout.W_EPOCH] + 1)
            self._producer.poll(POLL_S)
            self._refusals.restore()

    def _claim(self) -> None:
        """Claim an epoch; the ring's head starts at its epoch_start, which the log has already. A fenced ring never claims again."""
        stop = self.ring.text("believed")
        source_clean = self._words[layout.W_CLEAN] == layout.CLEAN_SOURCE
        won = claim(
            self._config,
            self.volume,
            self._agent,
            self.ring.size_bytes,
            Position.parse(stop) if source_clean and stop else None,
            self.ring.text("topic_id"),
            self._newest_claim(self.volume),
            self._claimant(self.volume),
            self._announce,
            lambda: self.ring.memory.current and not self._stop.is_set(),
        )
        if self.fenced:
            raise fenced(self.volume, won.position.epoch + 1)
        self._sent = won.position.sequence
        won.enter(self.ring)
        event(_log, logging.INFO, "epoch_claimed", volume=self.volume, position=won.position, claimed_as=won.claimed_as)

    def _tell_claim(self) -> None:
        """Let `ho.control` know the epoch, if it does not; nothing waits for it. Raises FencedError if a newer one was won."""
        epoch, first = self._words[layout.W_EPOCH], self._words[layout.W_EPOCH_FIRST]
        try:
            known = self._newest_claim(self.volume)
        except HostoffloadError:  # not known yet what it knows: the next start of a producer tries again
            return
        if known > epoch and self._claimant(self.volume):  # one announced alone may never be claimed; in the log it would fence
            raise fenced(self.volume, known)
        if known < epoch or (known == epoch and not self._claimant(self.volume)):
            told = EpochClaim(self.volume, epoch, self._incarnation(), self._agent, self.ring.text("topic_id"), first, time.time_ns())
            self._claimed(told)

    def _check_topic(self) -> None:
        """Raise ResyncError if the topic is not the one written to, after telling capture: it begins a new epoch (design rule 8)."""
        topic = writes_topic(self.volume)
        found = Topics(self._config).topic_id(topic)
        if found is None:
            raise ConfigError(
                f"Topic {topic} does not exist",
                hint="It was deleted: `hostoffload volume remove` and `volume add` make it anew, and everything is copied again.",
                volume=self.volume,
            )
        if found != self.ring.text("topic_id"):
            raise self._lost(f"Topic {topic} was made anew")

    def _lost(self, told: str) -> ResyncError:
        """Return the error of a stream that can't be gone on with, after telling capture: it begins a new epoch."""
        self._words[layout.W_LOST] = 1
        return ResyncError(told, hint="A new epoch begins and the whole volume is copied.", volume=self.volume)

    def _recount(self) -> None:
        """Read the log after the last counted acknowledgement and count what is there of ours."""
        self._check_topic()
        with PartitionReader(self._config, writes_topic(self.volume)) as reader:
            self._count_between(reader, *self._unread(reader))
        with self._mutex:
            self._sent = self._words[layout.W_SENT] = self._words[layout.W_ACKED]

    def _unread(self, reader: PartitionReader) -> tuple[int, int]:
        """Return where reading the log goes on, and its end. A log that is not the one that was counted is read from our claim on."""
        low, end = reader.bounds()
        wanted = self._words[layout.W_NEXT_OFFSET]
        if wanted < low:  # deleted by age before we looked, a newer epoch perhaps with it: what is not counted is published again
            event(_log, logging.WARNING, "log_start_passed", volume=self.volume, expected=wanted, got=low)
            if (known := self._newest_claim(self.volume)) > self._words[layout.W_EPOCH]:
                raise fenced(self.volume, known)
            return low, end
        if wanted == low or (wanted <= end and is_counted(reader, self._incarnation(), self._words[layout.W_ACKED], wanted - 1)):
            return wanted, end
        self._check_topic()
        event(_log, logging.ERROR, "log_end_went_back", volume=self.volume, expected=wanted, got=end)
        start = find_epoch_start(reader, self._incarnation(), self._words[layout.W_EPOCH_FIRST])
        if start is None:
            check_untaken(reader, self.volume, self._words[layout.W_EPOCH], self._incarnation())
            raise self._lost(f"Topic {writes_topic(self.volume)} has lost our claim")
        return start, end

    def _count_between(self, reader: PartitionReader, start: int, end: int) -> None:
        epoch, acked = self._words[layout.W_EPOCH], self._words[layout.W_ACKED]
        found = recount(reader, self.volume, epoch, self._incarnation(), acked, start, end)
        self._count(found.acked, found.next_kafka_offset)
        self._acknowledged()

    def _count(self, acked: int, next_kafka_offset: int, payload_bytes: int | None = None) -> None:
        """Let everything up to `acked` be durable, never less than before; `payload_bytes` is what that adds, if it is known."""
        words = self._words
        with self._mutex:
            if self.fenced:
                return
            before = words[layout.W_ACKED]
            acked = max(acked, before)  # a publication that is being replaced may come late: what was freed stays freed
            if payload_bytes is None:
                payload_bytes = self._backlog.payload_bytes(before, acked)
            self._backlog.acknowledged(payload_bytes)
            words[layout.W_ACKED] = acked
            if acked > before:
                words[layout.W_PROGRESS_NS] = time.monotonic_ns()
            words[layout.W_NEXT_OFFSET] = next_kafka_offset  # last: killed in between, the message is read again and counts nothing

    def _open(self) -> None:
        producer = OrderedProducer(
            self._config,
            writes_topic(self.volume),
            self._delivered,
            queue_bytes_max=max(self._in_flight.bytes, 64 << 20),
            messages_joined_max=1 if self._refusals.limit.lowered else MESSAGES_JOINED_MAX,
        )
        with self._mutex:
            self._producer = producer
        self._acknowledged()

    def _close(self) -> None:
        with self._mutex:
            producer, self._producer = self._producer, None
            self._in_flight.add(-self._flying_bytes)
            self._flying = self._flying_bytes = 0
        if producer is not None:
            producer.close()

    def _delivered(self, tag: tuple[int, int, int, int], kafka_offset: int | None) -> None:
        """Count an acknowledgement, in order; called from `poll` on the Kafka thread."""
        first, last, size, payload_bytes = tag
        words = self._words
        with self._mutex:
            self._flying -= 1
            self._flying_bytes -= size
            self._since_s = time.monotonic()
        self._in_flight.add(-size)
        if kafka_offset is not None and kafka_offset == words[layout.W_NEXT_OFFSET] and first == words[layout.W_ACKED] + 1:
            self._count(last, kafka_offset + 1, payload_bytes)
        else:
            self._read_back(last, kafka_offset)
        self._be_well()
        self._acknowledged()

    def _read_back(self, last: int, kafka_offset: int | None) -> None:
        """Read the log from the previous acknowledgement to this one, and count what is there (design rule 18)."""
        with PartitionReader(self._config, writes_topic(self.volume)) as reader:
            start, end = self._unread(reader)
            end = end if kafka_offset is None else kafka_offset + 1
            event(_log, logging.INFO, "log_read_back", volume=self.volume, start=start, end=end)
            self._count_between(reader, start, end)
        if self._words[layout.W_ACKED] < last:
            raise RetryError(f"An acknowledgement of volume {self.volume} can't be found in the log", volume=self.volume, sequence=last)

    def _incarnation(self) -> bytes:
        return self._words[layout.W_INCARNATION].to_bytes(8, "little")

    def _be_well(self) -> None:
        """Forget what was wrong: Kafka acknowledged something."""
        self._refused = None
        self._backoff_s = BACKOFF_S
        self._refusals.be_well()

    def _fail(self, error: HostoffloadError) -> None:
        self._refused = self._stated(error)

    def _stated(self, error: HostoffloadError) -> str:
        self._repeats.event(_log, logging.WARNING, "publication_failed", volume=self.volume, error=error, hint=error.hint)
        return f"{error.sentence}. {error.hint}" if error.hint else error.sentence

    # -- facts ---------------------------------------------------------------------------------------------------------

    def backlog_bytes(self) -> int:
        """Return the payload bytes captured or copied and not acknowledged."""
        with self._mutex:
            return self._backlog.bytes()
