"""Which records were being handled when this process ended, kept across any end, so that a chunk that ends it again and again is found.

One slot per stage and partition number in one file of the state folder, overwritten in place: what was written outlives the process (not
the machine) and costs microseconds a chunk. The folder's lock makes us the only writer.

Invariants:
- A slot names records only while a handler works on them, not while it declares a wait. A handler gives up the processor in declared
  waits only, so when the process dies without a word the slot that speaks is that of the code that ran.
- Where the process ends by its own decision, that decision says whose fault it was (fatal.end), and no other slot speaks.
- What ended the process ENDS times is handed out in halves; the half that ends it again is halved next, the half that commits is cleared.
- Only a record that was alone is condemned: by an end that named it, or by ENDS ends without a word, each with nobody else at work.
- What cannot be read accuses nobody.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from streams.engine.stage import Chunk, Record

ENDS = 3
SLOT = 640  # bytes; names of topics have at most 249 characters, those of stages come from the flow
Key = tuple[str, int]
"""Stage and partition number."""
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets `first` to below `end` of a topic, `count` records."""

    topic: str
    first: int
    end: int
    count: int

    def meets(self, other: "Span") -> bool:
        """Whether both hold an offset."""
        return self.topic == other.topic and self.first < other.end and other.first < self.end


@dataclass(frozen=True, slots=True)
class Suspect:
    """Records that ended the process `ends` times; `proof` of ENDS condemns a record that was alone."""

    span: Span
    ends: int
    proof: int

    def again(self, span: Span, proof: int) -> "Suspect":
        """After one more end: the guilty record is in both spans. Proof counts for a record that was alone, each time."""
        first, end = max(self.span.first, span.first), min(self.span.end, span.end)
        return Suspect(Span(span.topic, first, end, min(self.span.count, span.count)), self.ends + 1, self.proof + proof)


class Suspects:
    """Of one process. Without `open` nothing is remembered."""

    def __init__(self) -> None:
        self._held: dict[Key, Suspect] = {}
        self._busy: dict[Key, Span] = {}
        self._slots: dict[Key, int] = {}
        self._descriptor: int | None = None

    def open(self, path: Path) -> None:
        """Read what the process before us left, count its end, and go on in a file made anew."""
        slots = _read(path)
        speaking = sum(run is not None for _, run, _, _ in slots)
        for key, run, held, named in slots:
            proof = ENDS if named else int(speaking == 1)
            if run is not None:
                alone = proof if run.count == 1 else 0
                held = held.again(run, alone) if held is not None and held.span.meets(run) else Suspect(run, 1, alone)
                log.warning(
                    "the process ended while this was handled", stage=key[0], topic=run.topic, partition=key[1], offset=held.span.first,
                    records=held.span.count, times=held.ends,
                )  # fmt: skip
            if held is not None:
                self._held[key] = held
        fresh = path.with_suffix(".new")
        self._descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        for key in self._held:
            self._write(key)
        fresh.replace(path)  # only now the end is counted, and only once

    def share(self, key: Key, chunk: Chunk) -> int:
        """How many of the chunk's first records may be handed out together; all of them unless they ended the process ENDS times."""
        held = self._held.get(key)
        if held is None or held.ends < ENDS or not held.span.meets(_span(chunk)):
            return len(chunk.records)
        before = sum(r.offset < held.span.first for r in chunk.records)
        within = sum(held.span.first <= r.offset < held.span.end for r in chunk.records)
        return before or max(1, within // 2) if within else len(chunk.records)

    def condemned(self, key: Key, chunk: Chunk) -> bool:
        """Whether this is the one record that ends the process."""
        held = self._held.get(key)
        alone = len(chunk.records) == 1 and held is not None and held.span.meets(_span(chunk))
        return alone and held is not None and held.ends >= ENDS and held.proof >= ENDS

    def begins(self, key: Key, chunk: Chunk) -> None:
        """The handler works on these records; or again, after a wait."""
        self._busy[key] = _span(chunk)
        self._write(key)

    def rests(self, key: Key) -> None:
        """The handler is done, or declares a wait."""
        if self._busy.pop(key, None) is not None:
            self._write(key)

    def passed(self, key: Key, topic: str, end: int) -> None:
        """Everything below `end` is committed."""
        if (held := self._held.get(key)) is None or held.span.topic != topic or end <= held.span.first:
            return
        if end >= held.span.end:
            del self._held[key]
        else:
            self._held[key] = replace(held, span=replace(held.span, first=end))
        self._write(key)

    def confess(self, guilty: Key | None) -> None:
        """The process ends by its own decision, because of what this slot holds or, None, because of no record."""
        for key in list(self._busy):
            if key != guilty:
                self.rests(key)
        if guilty is not None and guilty in self._busy:
            self._write(guilty, named=True)

    def _write(self, key: Key, named: bool = False) -> None:
        if self._descriptor is None:
            return
        place = self._slots.setdefault(key, len(self._slots))
        run, held = self._busy.get(key), self._held.get(key)
        said = b""
        if run is not None or held is not None:
            whole = [
                *key,
                None if run is None else _listed(run),
                None if held is None else [*_listed(held.span), held.ends, held.proof],
                named,
            ]
            said = json.dumps(whole, separators=(",", ":")).encode()
        if len(said) < SLOT:
            os.pwrite(self._descriptor, said.ljust(SLOT - 1) + b"\n", place * SLOT)


def halves(chunk: Chunk, first: int | None = None) -> list[Chunk]:
    """A chunk of several records as two; `first` are the records of the first one."""
    middle = len(chunk.records) // 2 if first is None else first
    return [Chunk(chunk.topic, chunk.partition, part) for part in (chunk.records[:middle], chunk.records[middle:])]


def _span(chunk: Chunk) -> Span:
    records: Sequence[Record] = chunk.records
    return Span(chunk.topic, records[0].offset, records[-1].offset + 1, len(records))


def _listed(span: Span) -> list[str | int]:
    return [span.topic, span.first, span.end, span.count]


def _read(path: Path) -> list[tuple[Key, Span | None, Suspect | None, bool]]:
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            stage, number, run, held, named = json.loads(line)
            suspect = None if held is None else Suspect(Span(*_numbers(held[:4])), int(held[4]), int(held[5]))
            found.append(((str(stage), int(number)), None if run is None else Span(*_numbers(run)), suspect, bool(named)))
        except (ValueError, TypeError, IndexError, KeyError):
            continue
    return found


def _numbers(said: list[object]) -> tuple[str, int, int, int]:
    topic, first, end, count = said
    return str(topic), int(str(first)), int(str(end)), int(str(count))
