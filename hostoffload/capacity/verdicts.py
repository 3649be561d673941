"""Whether the config in force suffices: one sentence for each key that capacity depends on, with the value that would. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hostoffload.capacity.figures import rate, size, span
from hostoffload.capacity.needs import DAY_S, Buffer, Kafka, Store
from hostoffload.capacity.workload import Workload
from stream.config import Config


@dataclass(frozen=True, slots=True)
class Verdict:
    """`suffices` None: it can't be told from what was seen. `wanted` is the value to set the key to, None where it is as it should be."""

    key: str
    suffices: bool | None
    sentence: str
    wanted: int | None = None


def verdicts(workload: Workload, config: Config, buffer: Buffer, kafka: Kafka, store: Store) -> tuple[Verdict, ...]:
    """Return what is to be said of the config."""
    return (
        *_buffer(config, buffer),
        _retention(config, buffer, kafka),
        _retention_bytes(config, buffer, kafka),
        _history_bytes(config, store),
        Verdict(
            "history.scratch_dir",
            True,
            f"Its disk needs {size(store.scratch_bytes)} for a fold, beside the store: what one step's writes take.",
        ),
        *_rounds(workload, config),
    )


def _buffer(config: Config, buffer: Buffer) -> Iterator[Verdict]:
    key = "agent.buffer_bytes_max"
    present = f"The present {buffer.present_bytes >> 20} MiB"
    lasts = f"{span(buffer.bridged_s)}, all that was seen, or longer" if buffer.bridged_all else f"at least {span(buffer.bridged_s)}"
    if buffer.outage_s is None:
        yield Verdict(
            key, None, f"{present} keep order for {lasts} without Kafka, at the busiest that was seen; no outage is asked for (--outage)."
        )
    elif buffer.needed_bytes is None:
        told = f"What an outage of {span(buffer.outage_s)} needs is not known: nobody watched for that long. {present} last {lasts}."
        yield Verdict(key, None, told)
    elif buffer.needed_bytes <= buffer.present_bytes:
        yield Verdict(
            key,
            True,
            f"{present} bridge an outage of {span(buffer.outage_s)}, which needs {buffer.needed_bytes >> 20} MiB for this volume.",
        )
    else:
        wanted = f"needs {buffer.needed_bytes >> 20} MiB for this volume: {buffer.needed_bytes}"
        yield Verdict(key, False, f"{present} last {lasts}; an outage of {span(buffer.outage_s)} {wanted}.", buffer.needed_bytes)
        if config.agent.overflow == "throttle":
            held = f"Beyond the buffer a write is held for {span(config.agent.throttle_s_max)} at most, then order is given up."
            yield Verdict("agent.overflow", None, held)


def _retention(config: Config, buffer: Buffer, kafka: Kafka) -> Verdict:
    key = "kafka.retention_ms"
    if kafka.kept_s is None:
        daily = size(kafka.writes_bytes_per_day + kafka.journal_bytes_per_day)
        return Verdict(key, True, f"Kafka keeps everything for ever: {daily} more a day and replica, without end.")
    if buffer.outage_s is not None and kafka.kept_s < buffer.outage_s:
        wanted = int(buffer.outage_s * 1000)
        return Verdict(key, False, f"Kafka keeps {span(kafka.kept_s)}, less than the outage of {span(buffer.outage_s)}: {wanted}.", wanted)
    return Verdict(key, True, f"CX and targets may be away for {span(kafka.kept_s)} before Kafka deletes what they have not read.")


def _retention_bytes(config: Config, buffer: Buffer, kafka: Kafka) -> Verdict:
    key, limit = "kafka.retention_bytes", config.kafka.retention_bytes
    if limit < 0:
        room = f"the brokers need room for {size(kafka.disk_bytes)}" if kafka.disk_bytes is not None else "the brokers fill without end"
        return Verdict(key, True, f"It sets no limit; {room}.")
    fastest = max(kafka.writes_bytes_per_day, kafka.journal_bytes_per_day) / DAY_S
    lasts_s = limit / fastest if fastest else None
    promised_s = max(kafka.kept_s or 0, buffer.outage_s or 0) or None
    if lasts_s is None or (promised_s is not None and lasts_s >= promised_s):
        return Verdict(key, True, f"{size(limit)} a topic hold all that is kept by age.")
    if promised_s is None:
        return Verdict(key, True, f"{size(limit)} a topic last {span(lasts_s)} at the mean rate; CX and targets may be away no longer.")
    wanted = int(promised_s * fastest) + 1
    return Verdict(
        key, False, f"{size(limit)} a topic last {span(lasts_s)} at the mean rate, less than {span(promised_s)}: {wanted}, or -1.", wanted
    )


def _history_bytes(config: Config, store: Store) -> Verdict:
    key, limit = "history.bytes_max", config.history.bytes_max
    bound = "at most " if store.at_most else ""
    if not limit:
        grows = f"{bound}{size(store.growth_bytes_per_day)} a day at first"
        full = f"{bound}{size(store.full_bytes)} in the end" if store.full_bytes is not None else "how much in the end is not known"
        return Verdict(key, True, f"It sets no limit; the store grows by {grows}, {full}.")
    if store.full_bytes is not None and store.full_bytes <= limit:
        return Verdict(key, True, f"{size(limit)} hold the whole retention table, {bound}{size(store.full_bytes)}.")
    told = (
        f"{size(limit)} may not hold the retention table ({bound}{size(store.full_bytes)}): the finest and oldest would go before its time"
    )
    wanted = None if store.full_bytes is None else int(store.full_bytes) + 1
    return Verdict(
        key, None if store.at_most or wanted is None else False, f"{told}{'' if wanted is None else f': {wanted}, or 0'}.", wanted
    )


def _rounds(workload: Workload, config: Config) -> Iterator[Verdict]:
    """What goes over the whole volume: the first copy, and verification."""
    if workload.size_bytes is None:
        return
    limit, verify = config.agent.sync_bytes_per_s_max, config.agent.verify_bytes_per_s
    if limit:
        told = f"The first copy of {size(workload.size_bytes)} takes {span(workload.size_bytes / limit)} at {rate(limit)}, less with holes."
        yield Verdict("agent.sync_bytes_per_s_max", True, told)
    if verify:
        told = f"A round of verification takes {span(workload.size_bytes / verify)} at {rate(verify)}."
        yield Verdict("agent.verify_bytes_per_s", True, told)
