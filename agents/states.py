"""Decoded states of the records that change most, so that a record which changes again is not decoded again.

Kept by the bytes they are equal to, and never asked for without them: the table alone says what a record's state is, whoever wrote it and
whatever became of the transaction, so nothing here can be stale. A state is given to one taker, who may change it in place: it is out of
here then, and comes back with its new bytes. Bounded are their bytes, of the whole process; decoded they take five times as much again.
"""

from agents.rules.merge import RecordState

MOST_BYTES = 4_000_000


class States:
    """Of one process."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._bytes = most_bytes, 0
        self._held: dict[bytes, RecordState] = {}

    def pop(self, raw: bytes | None, record_id: str) -> RecordState:
        """The state of these bytes (None: of a record never seen), for the taker alone. Raises FatalError, as RecordState.decode."""
        if raw is None or (state := self._held.pop(raw, None)) is None:
            return RecordState.decode(raw, record_id)
        self._bytes -= len(raw)
        return state

    def put(self, state: RecordState) -> bytes:
        """The state's bytes; from now on nobody may change it."""
        raw = state.encode()
        if raw not in self._held:
            self._bytes += len(raw)
        self._held[raw] = state
        while self._bytes > self._most:
            oldest = next(iter(self._held))
            self._bytes -= len(oldest)
            del self._held[oldest]
        return raw
