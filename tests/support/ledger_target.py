"""The target that writes to tests/support/ledger.py: HTTP through the one outbound client, errors of the classes a real one raises."""

import os
from collections.abc import Mapping, Sequence

import orjson

from agents.outbound import Outbound
from agents.targets.base import Columns, Effect, Options
from models.errors import PausedError, TemporaryError
from models.write import Outcome, WriteResult


class LedgerOptions(Options):
    """url: of the ledger server. compares: what kind this one is."""

    url: str
    compares: bool


class Target:
    """See the protocol in agents/targets/base.py. Sends (key, sequence id, turn, received) of every effect, and which process it is."""

    options_class = LedgerOptions
    batch_records = 100
    batch_bytes = 1_000_000
    requests_per_second: float | None = None
    renames = False
    key_field: str | None = None
    default_object: str | None = "record"

    def __init__(self, name: str, options: LedgerOptions, installation: str) -> None:
        self.name, self.compares = name, options.compares
        self._http = Outbound(f"target {name}", options.url, {})

    @staticmethod
    def refusal(name: str) -> str | None:
        """Any name will do."""
        return None

    def same_key(self, object: str, key: str) -> str:
        """As it stands."""
        return key

    def alone(self, effect: Effect) -> float | None:
        """Everything fits into a batch."""
        return None

    async def start(self, objects: Mapping[str, Columns]) -> None:
        """See whether it is there."""
        await self.write([])

    async def probe(self) -> None:
        """As start."""
        await self.write([])

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def write(self, effects: Sequence[Effect]) -> list[WriteResult]:
        """One call; an answer that cannot be read is an unknown outcome."""
        told = [
            {"key": e.key, "seq": sequence_of(e.body), "turn": e.turn, "received": int(str(e.meta.received))}
            for e in effects
            if e.json is not None
        ]
        answer = await self._http.request("POST", f"/{self.name}", orjson.dumps({"worker": os.getpid(), "effects": told}))
        if answer.status == 401:
            raise PausedError(f"target {self.name}: the key was revoked")
        if answer.status != 200:
            raise TemporaryError(f"target {self.name} answers {answer.status}", retry_after=answer.retry_after)
        results = answer.json.get("results") if isinstance(answer.json, dict) else None
        if not isinstance(results, list) or len(results) != len(effects):
            raise TemporaryError(f"target {self.name}: the answer cannot be read, so its outcome is unknown")
        return [WriteResult(Outcome(result)) for result in results]


def sequence_of(body: Mapping[str, object] | None) -> int:
    """The sequence id a mapped body carries: the built-in person map calls it title, the map file seq."""
    found = body or {}
    return int(str(found.get("title") or found.get("seq")))
