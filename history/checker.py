"""The checker: derives again what the store says about itself, and trusts nothing of it.

Called by `hostoffload check`. Reads every byte of a volume's objects: each file's size, head, header, blocks and pages by their checksums;
of level 0 each record by the running digest, and from the records the index, marks, flushes, times and gaps that the header claims; how
segments join and whether those that overlap agree; each fold against what it is made of, as far as that is still there
(`history.fold_check`); what is pinned. It goes on after a finding, and names file, place and, where that is known, the extents of the
volume. Memory: one segment's header, a block, and the names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from history.catalog import Catalog
from history.chain import HOLES
from history.doubts import read_doubt
from history.extent_index import ZEROES
from history.fold_check import Differs, compare, same_facts, sources_of
from history.levels import AS_WRITTEN
from history.pins import read_pin
from history.reader import SegmentReader
from history.segment import SegmentHeader, SegmentName
from history.store import Store
from stream.errors import ConfigError, IntegrityError
from stream.extent import Extent, ExtentSet
from stream.position import ZERO, Position
from stream.record import FLAG_MORE, Batch, Kind

EXTENTS_TOLD_MAX = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: in which file, where in it, and which bytes of the volume it concerns, where that is known."""

    path: str
    sentence: str
    at_bytes: int | None = None
    extents: tuple[Extent, ...] = ()
    concerned_bytes: int = 0

    def facts(self) -> dict[str, Any]:
        """Return it as JSON shows it; of the extents `EXTENTS_TOLD_MAX` at most."""
        told = [{"offset_bytes": one.offset_bytes, "length_bytes": one.length_bytes} for one in self.extents[:EXTENTS_TOLD_MAX]]
        return {
            "path": self.path,
            "sentence": self.sentence,
            "at_bytes": self.at_bytes,
            "extents": told,
            "extents_bytes": self.concerned_bytes,
        }

    def __str__(self) -> str:
        at = "" if self.at_bytes is None else f", at byte {self.at_bytes}"
        told = ", ".join(f"{one.offset_bytes}+{one.length_bytes}" for one in self.extents[:EXTENTS_TOLD_MAX])
        more = ", ..." if len(self.extents) > EXTENTS_TOLD_MAX else ""
        concerns = f"; bytes {told}{more} of the volume" if told else ""
        return f"{self.path}{at}: {self.sentence}{concerns}"


@dataclass(slots=True)
class Checked:
    """What was looked at."""

    segments: int = 0
    size_bytes: int = 0
    objects: int = 0
    levels: dict[int, int] = field(default_factory=dict)


def check_volume(store: Store, volume: str, checked: Checked, tell: Callable[[float], None] = lambda share: None) -> Iterator[Finding]:
    """Yield all that is wrong with a volume's history; `tell` is given the share of the bytes done. May raise RetryError, ConfigError."""
    catalog = Catalog(store, volume)
    objects = store.list(f"{volume}/")
    catalog.refresh()
    before = frozenset(catalog.sizes)
    total = sum(one.size_bytes for one in objects) or 1
    headers: dict[SegmentName, SegmentHeader] = {}
    for found in _others(store, volume, [one.name for one in objects], catalog):
        if any(one.name == found.path for one in store.list(found.path.rpartition("/")[0] + "/")):  # else it was removed meanwhile
            yield found
    for name in sorted(catalog.sizes, key=lambda one: (one.level, one.first, one.last)):
        found, header = _segment(store, name, catalog.sizes[name])
        if found and not any(one.name == str(name) for one in store.list(f"{volume}/L{name.level}/")):
            continue  # expired meanwhile
        yield from found
        if header is not None:
            headers[name] = header
        checked.segments += 1
        checked.size_bytes += catalog.sizes[name]
        checked.levels[name.level] = checked.levels.get(name.level, 0) + 1
        tell(checked.size_bytes / total)
    checked.objects = len(objects)
    catalog.refresh()
    if not before <= frozenset(catalog.sizes):  # retention went by: what was between two of them is in others now
        good = headers.keys() | catalog.sizes.keys() - before
        headers = {}
        for name in good & catalog.sizes.keys():
            with suppress(IntegrityError):  # of a new one: the next check tells it
                headers[name] = catalog.header(name)
    yield from _joins(headers)
    yield from _folds(catalog, headers)


def _others(store: Store, volume: str, names: Sequence[str], catalog: Catalog) -> Iterator[Finding]:
    """Look at what is no segment: pins must be kept moments, leases are passed over, nothing else belongs there."""
    for name in names:
        if name.startswith(f"{volume}/leases/") or SegmentName.parse(name) is not None:
            continue
        if name.startswith(f"{volume}/doubts/"):
            try:
                read_doubt(store, name)
            except (IntegrityError, ConfigError) as error:
                yield _found(name, error)
            continue
        if not name.startswith(f"{volume}/pins/"):
            yield Finding(name, "It does not belong to a history")
            continue
        try:
            kept = read_pin(store, name)
        except (IntegrityError, ConfigError) as error:
            yield _found(name, error)
            continue
        why_not = _why_not(catalog, kept.position)
        if why_not is not None:
            catalog.refresh()  # retention may have gone by
            why_not = _why_not(catalog, kept.position)
        if why_not is not None:
            yield Finding(name, f"The pinned moment {kept.position} can't be restored{why_not}")


def _why_not(catalog: Catalog, position: Position) -> str | None:
    """Return why a moment can't be restored, None if it can."""
    try:
        return None if catalog.cover(position)[1] == position else " from what is there"
    except IntegrityError as error:
        return f": {error.sentence} ({error.facts.get('path')})"


def _segment(store: Store, name: SegmentName, size_bytes: int) -> tuple[list[Finding], SegmentHeader | None]:
    """Prove one file; its header is returned if that is good."""
    path = str(name)
    try:
        reader = SegmentReader(store, name)
    except IntegrityError as error:
        return [_found(path, error)], None
    found = []
    if reader.size_bytes != size_bytes:
        found.append(Finding(path, f"It has {size_bytes} bytes instead of {reader.size_bytes}", min(size_bytes, reader.size_bytes)))
    found += _records(reader) if name.level == AS_WRITTEN else _extents(reader)
    return found, reader.header


class _Derived:
    """What the header of a level 0 segment must say, collected from its records."""

    def __init__(self) -> None:
        self.records = 0
        self.index: list[tuple[int, int, int, int]] = []
        self.marks: list[tuple[Position, int, int, int, dict[str, str]]] = []
        self.flushes: list[int] = []
        self._split: list[tuple[int, int, int, int]] = []
        self._last: Position | None = None

    def add(self, batch: Batch) -> None:
        payload = 0
        if self._last is not None and batch.first != self._last.next():
            self._split = []
        for record in batch.records():
            number, self.records = self.records, self.records + 1
            entry = (record.offset_bytes, number, record.length_bytes, payload)
            if record.kind == Kind.WRITE:
                payload += record.length_bytes
                self._split.append(entry)
                if record.flags & FLAG_MORE:
                    continue
                self.index += self._split
            elif record.kind in (Kind.ZERO, Kind.TRIM) and record.length_bytes:
                self.index.append((*entry[:3], ZEROES))
            elif record.kind == Kind.FLUSH:
                self.flushes.append(number)
            elif record.kind.is_mark and record.kind != Kind.HEARTBEAT:
                self.marks.append((record.position, int(record.kind), record.capture_time_ns, number, dict(record.attributes)))
            self._split = []
        self._last = batch.last

    def contradiction(self, header: SegmentHeader) -> str | None:
        """Return what the header says otherwise; to be asked when all records were added."""
        extents = header.extents
        told = list(zip(extents.offsets, extents.records, extents.lengths, extents.payloads, strict=True))
        if told != sorted(self.index):
            return "extent index"
        marks = [(one.position, int(one.kind), one.capture_time_ns, one.record, dict(one.attributes)) for one in header.marks]
        if marks != self.marks:
            return "marks"
        if list(header.flushes) != self.flushes:
            return "flushes"
        return "end, which is inside a split write" if self._split else None


def _records(reader: SegmentReader) -> list[Finding]:
    """Prove the records of a segment of level 0, and derive its header from them."""
    header = reader.header
    coverage = header.coverage
    found: list[Finding] = []
    derived = _Derived()
    digest, last = coverage.digest_before, coverage.follows
    jumps = {gap.position for gap in header.gaps}
    whole, state = True, None
    for index, block in enumerate(header.blocks):
        try:
            stored = reader.batch(index)
            batch = stored.unpack()
        except IntegrityError as error:
            found.append(_found(reader.path, error, _of_block(header, index)))
            whole = False
            digest, last = b"", block.last
            continue
        entry = stored.entry
        if digest and (entry.digest_before, entry.follows) != (digest, last) and last not in jumps:
            sentence = f"The records from {batch.first} on do not continue those before"
            found.append(Finding(reader.path, sentence, None, *_of_block(header, index)))
        if (batch.capture_time_ns, batch.last_capture_time_ns) != (block.capture_time_ns, block.last_capture_time_ns):
            found.append(Finding(reader.path, f"The header has other times of the records from {batch.first} on than they have"))
        derived.add(batch)
        digest, last, state = entry.state.digest, entry.records.last, entry.state
    if not whole or state is None:
        return found
    if digest != coverage.digest_after:
        found.append(Finding(reader.path, "It does not end with the digest that its header says"))
    if (wrong := derived.contradiction(header)) is not None:
        found.append(Finding(reader.path, f"The header's {wrong} is not what the records give"))
    if tuple(gap for gap in coverage.open_gaps if gap.reason not in HOLES) != tuple(sorted(state.open_gaps, key=lambda gap: gap.position)):
        found.append(Finding(reader.path, "The header's open gaps are not those of the last record"))
    times = header.blocks[0].capture_time_ns, header.blocks[-1].last_capture_time_ns
    if times != (coverage.first_capture_time_ns, coverage.last_capture_time_ns):
        found.append(Finding(reader.path, "The header's times are not those of its records"))
    return found


def _of_block(header: SegmentHeader, index: int) -> tuple[tuple[Extent, ...], int]:
    """Return the extents of the volume that a block's records wrote, and how many bytes those are."""
    extents = header.extents
    columns = zip(extents.offsets, extents.lengths, extents.records, strict=True)
    return _merged([(offset, offset + length) for offset, length, record in columns if header.block_of(record)[0] == index])


def _merged(spans: Sequence[tuple[int, int]]) -> tuple[tuple[Extent, ...], int]:
    covered = ExtentSet()
    for start, end in spans:
        covered.add(start, end)
    return tuple(covered), covered.total_bytes


def _extents(reader: SegmentReader) -> list[Finding]:
    """Prove the pages and blocks of a fold."""
    found: list[Finding] = []
    at_bytes = 0
    for number, entry in enumerate(reader.header.pages):
        try:
            page = reader.page(number)
        except IntegrityError as error:
            found.append(_found(reader.path, error, _merged([(entry.start_bytes, entry.end_bytes)])))
            at_bytes = entry.offset_bytes + entry.length_bytes
            continue
        begin = 0
        for block in page.table:
            spans = list(zip(page.starts[begin : begin + block.extents], page.ends[begin : begin + block.extents], strict=True))
            begin += block.extents
            try:
                if block.offset_bytes != at_bytes:
                    raise IntegrityError("Its blocks do not follow each other", at_bytes=at_bytes)
                if reader.fold_extents(block) != [(start, end) for start, end in spans]:
                    raise IntegrityError("A block has other extents than its page says")
                reader.fold_payload(block)
            except IntegrityError as error:
                found.append(_found(reader.path, error, _merged(spans)))
            at_bytes = block.offset_bytes + block.length_bytes
        if entry.offset_bytes != at_bytes:
            found.append(Finding(reader.path, "A page does not stand behind its blocks", at_bytes))
        at_bytes = entry.offset_bytes + entry.length_bytes
    return found


def _joins(headers: dict[SegmentName, SegmentHeader]) -> Iterator[Finding]:
    """See that each segment goes on from what is there, unless a fold holds its range, and that those with one end agree about it."""
    ends: list[Position] = [ZERO]
    digests: dict[Position, tuple[bytes, SegmentName]] = {}
    folds = sorted((name for name in headers if name.level > AS_WRITTEN), key=lambda name: name.last)
    fold_ends = [name.last for name in folds]
    for name in sorted(headers, key=lambda one: (one.last, one.first, one.level)):
        coverage = headers[name].coverage
        for at, digest in ((name.last, coverage.digest_after), (coverage.follows, coverage.digest_before)):
            known, other = digests.setdefault(at, (digest, name))
            jump = any(gap.position == at for header in (headers[name], headers[other]) for gap in header.gaps)
            if known != digest and not jump:
                yield Finding(str(name), f"It has another digest at {at} than {other}")
        last = ends[bisect_left(ends, name.last) - 1]
        joins = name.first <= last or name.first == last.next() or coverage.follows == last
        if joins or any(gap.position == last for gap in headers[name].gaps):
            if ends[-1] != name.last:
                ends.append(name.last)
            continue
        over = bisect_left(fold_ends, name.last)
        if not any(one.level > name.level and one.first <= name.first for one in folds[over:]):
            yield Finding(str(name), f"What it goes on from, {coverage.follows}, is not there: the history ends at {last}")


def _folds(catalog: Catalog, headers: dict[SegmentName, SegmentHeader]) -> Iterator[Finding]:
    """Compare each fold with what it is made of, as far as that is there and good."""
    good = {level: [name for name in names if name in headers] for level, names in catalog.levels().items()}
    for name in sorted((name for name in headers if name.level > AS_WRITTEN), key=lambda one: (one.level, one.last)):
        try:
            task = sources_of(name, headers, good)
            if task is not None:
                if not same_facts(catalog, name, task):
                    yield Finding(str(name), "Its marks or gaps are not those of what it is made of")
                compare(catalog, name, task)
        except Differs as error:
            yield Finding(str(name), "It holds other bytes than what it is made of", None, *_merged(error.spans))
        except IntegrityError:
            continue  # found above, in the file that has it


def _found(path: str, error: IntegrityError, concerned: tuple[tuple[Extent, ...], int] = ((), 0)) -> Finding:
    at_bytes = error.facts.get("at_bytes")
    return Finding(path, error.sentence, at_bytes if isinstance(at_bytes, int) else None, *concerned)
