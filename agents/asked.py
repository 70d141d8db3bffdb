"""What a chunk wants to be read again, as requests of `fetch.<connection>`: one per record and reason. Nothing is sent from here."""

import orjson

from models.envelope import Envelope, Headers
from streams.engine.stage import Output

Place = tuple[int, int]
"""Epoch and position of an event."""


class Asked:
    """Of one chunk. `plan`: print of its plan, by which who reads knows whether it reads by the same."""

    def __init__(self, topic: str, sobject: str, plan: str) -> None:
        self._topic, self._sobject, self._plan = topic, sobject, plan
        self._after: dict[tuple[str, tuple[tuple[str, bytes], ...]], Place | None] = {}

    def add(self, record_id: str, envelope: Envelope | None, after: Place | None) -> None:
        """With `envelope` the request carries why the row shall be emitted. `after`: the event that asks."""
        headers: Headers = []
        if envelope is not None:
            told = (("reason", envelope.reason.value), ("run", envelope.run), ("route", envelope.route))
            headers = [(name, value.encode()) for name, value in told if value is not None]
        mark = record_id, tuple(headers)
        before = self._after.get(mark, after)
        self._after[mark] = None if after is None or before is None else max(after, before)

    def outputs(self) -> list[Output]:
        """The requests. Who reads need not read what was read behind the last event of the chunk that asks."""
        found = []
        for (record_id, told), after in self._after.items():
            value = orjson.dumps({"sobject": self._sobject, "id": record_id})
            behind = [("epoch", b"%d" % after[0]), ("position", b"%d" % after[1])] if after else []
            found.append(Output(self._topic, record_id.encode(), value, [*told, *behind, ("plan", self._plan.encode())]))
        return found
