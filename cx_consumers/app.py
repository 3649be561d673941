"""The CX worker: a Faust app that shares the volumes' writes topics with the other workers of its group, and what runs behind it.

`run` is the process: the command line calls it. Faust brings group membership and messages, nothing else: each agent hands its events to
the intake and returns for the next one; what becomes of them is acknowledged to Faust in order, when it is durable. No volume's history
depends on the group's offsets (design rule 21), so every way in which Faust may deliver twice, late or not at all costs time at most.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faust
from aiokafka.errors import KafkaError
from faust.transport.drivers import aiokafka as driver

from cx_consumers.asks import Asks
from cx_consumers.assigned import AssignedVolumes
from cx_consumers.broker import KafkaBroker
from cx_consumers.declared import DeclaredVolumes
from cx_consumers.fold import FoldProcess
from cx_consumers.foreign_log import quieten
from cx_consumers.intake import Acknowledgements, Arrival, Intake
from cx_consumers.ordering import Shared
from cx_consumers.orphans import Orphans
from history.vault import open_vault
from stream import security
from stream.config import Config, KafkaConfig
from stream.control import ControlWriter
from stream.errors import HostoffloadError, RetryError
from stream.log import event
from stream.report import Reporter
from stream.roles import CX_GROUP
from stream.schema import MESSAGE_BYTES_MAX
from stream.topics import Topics, volume_of, writes_topic

SESSION_TIMEOUT_S = 6.0
HEARTBEAT_INTERVAL_S = 1.0
REBALANCE_TIMEOUT_S = 10.0
COMMIT_INTERVAL_S = 0.5
METADATA_AGE_MS_MAX = 3000  # a topic that was made anew is assigned again after it
RESUBSCRIBE_S = 0.2
BUFFERED_EVENTS_MAX = 16  # of each volume, before Faust pauses its partition; the intake holds the rest
FETCH_WAIT_MS_MAX = 100
PAUSED_S = 0.02
REPORT_INTERVAL_S = 0.1
REPORT_IDLE_S = 1.0
STOP_WORKERS_S = 2.5
STOP_FAUST_S = 2.0
STOP_S_MAX = 5.0
GIL_SWITCH_S = 0.0005  # the event loop and the volumes' threads take turns; 5 ms, the default, would be seen in every latency
_THREADS = frozenset({"asks", "declared", "orphans", "report"})
_log = logging.getLogger(__name__)


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, with a fetch that returns soon when a partition is paused or comes back (Faust fixes 1.5 s)."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS_MAX
        return consumer

    def on_crash(self, msg: str, *fmt: Any, **_: Any) -> None:
        """Tell in one line of the log that the thread ends; whoever started it gets the error itself."""
        event(_log, logging.WARNING, "consumer_ended", error=repr(sys.exception()))

    def highwater(self, tp: Any) -> int:
        """Return where the partition ends, for Faust's monitor; 0 if a rebalance took it meanwhile (Faust's own ends the process)."""
        return super().highwater(tp) if tp in self.assignment() else 0

    async def _commit(self, offsets: Any) -> bool:
        """Commit if it can be done now; Faust's own would end the process when a commit meets a change of the subscription."""
        consumer = self._ensure_consumer()
        held = {driver.ensure_aiokafka_TP(partition): offset for partition, offset in offsets.items() if partition in self.assignment()}
        if not held:
            return False
        try:
            await consumer.commit(held)
        except KafkaError as error:
            event(_log, logging.DEBUG, "commit_failed", error=repr(error))
            return False
        return True


class _Consumer(driver.Consumer):
    """Faust's consumer, which sleeps a second whenever all partitions are paused (`traps.md`), without that sleep."""

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _wait_next_records(self, timeout: float) -> Any:
        if self.flow_active and not self._get_active_partitions():
            await asyncio.sleep(PAUSED_S)
            return {}, set()
        return await super()._wait_next_records(timeout)


class _Transport(driver.Transport):
    Consumer = _Consumer


for _service in (_Consumer, _ConsumerThread):
    _service.logger = driver.logger  # mode gives a subclass the logger of its module; these lines are Faust's


class FaustIntake:
    """The Faust app: follow the writes topics of the wanted volumes, tell which are assigned, hand over their events."""

    def __init__(self, config: KafkaConfig, data_dir: Path, worker: str, intake: Intake, assigned: Callable[[set[str]], None]) -> None:
        self._intake = intake
        self._assigned = assigned
        self._agents: dict[str, Any] = {}
        self._app = faust.App(
            CX_GROUP,
            broker=[f"kafka://{address.strip()}" for address in config.bootstrap.split(",")],
            broker_client_id=f"ho-cx-{worker}",
            broker_credentials=_credentials(config),
            broker_check_crcs=False,  # the codec's checksum covers every byte
            broker_session_timeout=SESSION_TIMEOUT_S,
            broker_heartbeat_interval=HEARTBEAT_INTERVAL_S,
            broker_rebalance_timeout=REBALANCE_TIMEOUT_S,
            broker_commit_interval=COMMIT_INTERVAL_S,
            broker_max_poll_interval=86_400.0,
            consumer_auto_offset_reset="latest",  # what stands before is read by the volume's worker
            consumer_max_fetch_size=MESSAGE_BYTES_MAX,
            consumer_metadata_max_age_ms=METADATA_AGE_MS_MAX,
            stream_buffer_maxsize=BUFFERED_EVENTS_MAX,
            stream_wait_empty=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            table_standby_replicas=0,  # else Faust's own assignor gives partition 0 of every topic to one worker
            web_enabled=False,
            store="memory://",
            datadir=str(data_dir),
        )
        self._app.transport = _Transport(self._app.conf.broker_consumer, self._app)
        self._app.topics._resubscribe_sleep_lock_seconds = RESUBSCRIBE_S
        self._app.on_partitions_assigned.connect(self._on_assigned, weak=False)

    @property
    def has_ended(self) -> bool:
        """Tell whether Faust stopped by itself, which is a crash."""
        return self._app.should_stop

    @property
    def failure(self) -> BaseException | None:
        """Return why Faust stopped by itself: RetryError if Kafka was the reason."""
        reason = self._app.crash_reason
        return _gone(reason) if isinstance(reason, KafkaError) else reason

    async def start(self, volumes: frozenset[str]) -> None:
        """Join the group with these volumes. Raises RetryError if Kafka went away meanwhile."""
        self._app.conf.datadir.mkdir(parents=True, exist_ok=True)
        for volume in sorted(volumes):
            self._add(volume)
        try:
            await self._app.start()
        except KafkaError as error:
            raise _gone(error) from error

    async def follow(self, volumes: frozenset[str]) -> None:
        """Take these volumes from now on, without a restart."""
        for volume in sorted(volumes - set(self._agents)):
            await self._add(volume).start()
        for volume in sorted(set(self._agents) - volumes):
            await self._drop(volume)

    def check_subscription(self) -> None:
        """Ask for a subscription again that Faust dropped because a rebalance was under way (`traps.md`)."""
        wanted = {writes_topic(volume) for volume in self._agents}
        if set(self._app.topics._topic_name_index) != wanted:
            self.rejoin()

    def rejoin(self) -> None:
        """Subscribe once more, so that the group is assigned anew; nothing while that is under way."""
        if not self._app.rebalancing:
            self._app.topics._flag_changes()

    async def stop(self) -> None:
        """Leave the group at once and stop."""
        await self._app.stop()

    def _add(self, volume: str) -> Any:
        async def hand_over(stream: Any) -> None:
            async for arrived in stream.noack().events():
                await self._intake.put(volume, Arrival(arrived.message.offset, arrived.message.value, arrived.ack))

        topic = self._app.topic(writes_topic(volume), value_serializer="raw", key_serializer="raw")
        agent = self._app.agent(topic, name=f"intake-{volume}")(hand_over)
        self._agents[volume] = agent
        return agent

    async def _drop(self, volume: str) -> None:
        agent = self._agents.pop(volume)
        agent.cancel()
        await agent.stop()
        self._app.agents.pop(agent.name, None)
        topic = writes_topic(volume)
        for channel in [one for one in self._app.topics if topic in one.topics]:
            self._app.topics.discard(channel)

    async def _on_assigned(self, _app: Any, assigned: set[Any], **_: Any) -> None:
        volumes = {volume_of(partition.topic) for partition in assigned}
        self._assigned({volume for volume in volumes if volume in self._agents})


def _credentials(config: KafkaConfig) -> Any:
    """Return what Faust proves itself by, as `stream.kafka.client_settings` has it for the other clients; None for a plain connection."""
    context = security.tls_context(config) if security.uses_tls(config) else None
    if security.uses_sasl(config):
        word = security.password(config)
        return faust.SASLCredentials(username=config.sasl_username, password=word, ssl_context=context, mechanism=config.sasl_mechanism)
    return faust.SSLCredentials(context) if context is not None else None


def _gone(error: KafkaError) -> RetryError:
    """Return what an error that ended Faust asks of us: to be started again."""
    return RetryError("Kafka went away from the CX worker", hint="It is started again; look at the broker if it stays so.", got=repr(error))


class Worker:
    """One CX process: everything that runs in it, in one event loop and some threads."""

    def __init__(self, config: Config, state_dir: Path, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._config = config
        self._name = name
        self._loop = loop
        self._data_dir = state_dir / "cx" / name
        self._topics = Topics(config.kafka)
        self._control = ControlWriter(config.kafka)
        self._asks = Asks(self._control.put, name)
        self._intake = Intake(config.cx.pipeline_bytes_max, loop)
        self._declared = DeclaredVolumes(config.kafka, self._topics, config.cx.codec, self._on_declared, lambda: self._volumes.workers())
        self._orphans = Orphans(self._topics, lambda: self._wanted, self._on_orphans)
        shared = Shared(KafkaBroker(config.kafka, self._topics), name, self._asks, Acknowledgements(loop))
        store = open_vault(config.cx.store_url or str(state_dir / "store"), config.history)
        folds = FoldProcess(store.url, replace(config.history, scratch_dir=config.history.scratch_dir or str(state_dir)))
        self._volumes = AssignedVolumes(config, self._intake, shared, store, self._declared.codec, self._on_crash, folds)
        self._reporter = Reporter(state_dir, "cx", name, self._control)
        self._faust: FaustIntake | None = None
        self._wanted: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self._stopping = threading.Event()

    async def work(self) -> int:
        """Run until told to stop; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        threading.excepthook = self._on_thread_ended
        self._asks.start()
        self._declared.start()
        self._orphans.start()
        reports = threading.Thread(target=self._report, name="report", daemon=True)
        reports.start()
        event(_log, logging.INFO, "started", worker=self._name)
        try:
            while not self._stopping.is_set():
                await self._follow()
                try:
                    await asyncio.wait_for(self._wake.wait(), 0.5)
                except TimeoutError:
                    continue
                self._wake.clear()
        except Exception as error:
            self._on_crash(error)
        finally:
            await self._stop()
            reports.join(1.0)
        if isinstance(self._failure, HostoffloadError):
            raise self._failure
        if self._failure is not None:
            _log.error("crashed", exc_info=self._failure)
            return 1
        event(_log, logging.INFO, "stopped", worker=self._name)
        return 0

    async def _follow(self) -> None:
        """Bring Faust to the wanted volumes; without any there is no Faust, for it can't subscribe to nothing."""
        if self._faust is not None and self._faust.has_ended:
            self._on_crash(self._faust.failure or RuntimeError("Faust ended by itself"))
            return
        wanted = self._wanted
        self._volumes.keep(wanted)
        if self._faust is None and wanted:
            self._faust = FaustIntake(self._config.kafka, self._data_dir, self._name, self._intake, self._volumes.assign)
            await self._faust.start(wanted)
        elif self._faust is not None and not wanted:
            await self._stop_faust()
        elif self._faust is not None:
            await self._faust.follow(wanted)
            self._faust.check_subscription()

    async def _stop(self) -> None:
        """Stop, so that nothing is lost and little is done twice: the volumes finish what they hold, then the group is left."""
        leave = threading.Timer(STOP_S_MAX, self._leave)
        leave.daemon = True
        leave.start()
        self._declared.stop()
        self._orphans.stop()
        await asyncio.to_thread(self._volumes.stop, STOP_WORKERS_S)
        await asyncio.sleep(0)
        await self._stop_faust()
        self._stopping.set()
        await asyncio.to_thread(self._asks.stop, 0.5)

    async def _stop_faust(self) -> None:
        faust_intake, self._faust = self._faust, None
        if faust_intake is not None:
            try:
                await asyncio.wait_for(faust_intake.stop(), STOP_FAUST_S)
            except TimeoutError:
                event(_log, logging.WARNING, "faust_stops_slowly")

    def _leave(self) -> None:
        """End the process although a thread of Faust's or of a client's does not end; what is not durable is read again."""
        event(_log, logging.WARNING, "left_at_once", after_s=STOP_S_MAX)
        os._exit(1 if self._failure is not None else 0)

    def _on_signal(self) -> None:
        self._stopping.set()
        self._wake.set()

    def _on_declared(self, volumes: frozenset[str]) -> None:
        self._wanted = volumes
        self._loop.call_soon_threadsafe(self._wake.set)

    def _on_orphans(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._faust.rejoin() if self._faust is not None else None)

    def _on_crash(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stopping.set()
        self._loop.call_soon_threadsafe(self._wake.set)

    def _on_thread_ended(self, told: threading.ExceptHookArgs) -> None:
        """A thread of ours that ends by an error ends the process; a foreign one (Faust's, while it stops) is told in one line."""
        name = told.thread.name if told.thread is not None else ""
        if name in _THREADS and told.exc_value is not None:
            self._on_crash(told.exc_value)
        else:
            event(_log, logging.WARNING, "thread_ended", thread=name, error=repr(told.exc_value))

    def _report(self) -> None:
        told, idle_s = None, 0.0
        while not self._stopping.is_set():
            facts = self._volumes.facts()
            if facts != told or idle_s >= REPORT_IDLE_S:
                self._reporter.report(facts)
                told, idle_s = facts, 0.0
            self._stopping.wait(REPORT_INTERVAL_S)
            idle_s += REPORT_INTERVAL_S
        self._reporter.report(self._volumes.facts())


def run(config: Config, state_dir: Path, worker: str) -> int:
    """Run one worker until SIGTERM or SIGINT; return its exit code. The log is the caller's to configure.

    Raises ConfigError. A clean stop takes 5 s at most and leaves the group at once.
    """
    sys.setswitchinterval(GIL_SWITCH_S)
    quieten()

    async def main() -> int:
        return await Worker(config, state_dir, worker, asyncio.get_running_loop()).work()

    return asyncio.run(main())
