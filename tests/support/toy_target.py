"""A target in memory that records what it is told and answers as a test says; the smallest one that fulfils the protocol."""

from collections.abc import Mapping, Sequence

from agents.targets.base import Columns, Effect, Options
from models.write import Body, Outcome, WriteResult


class ToyOptions(Options):
    """Nothing needed."""

    colour: str = "red"


class Target:
    """`held` is what it holds; `errors` are raised by the next writes, `answers` given for a key."""

    options_class: type[Options] = ToyOptions
    batch_records = 3
    batch_bytes = 100_000
    requests_per_second: float | None = None
    compares = False
    renames = False
    key_field: str | None = None
    default_object: str | None = "things"

    def __init__(self, name: str, options: ToyOptions, installation: str) -> None:
        self.name, self.options, self.installation = name, options, installation
        self.held: dict[str, Body] = {}
        self.batches: list[list[Effect]] = []
        self.errors: list[Exception] = []
        self.answers: dict[str, WriteResult] = {}
        self.starts = 0

    @staticmethod
    def refusal(name: str) -> str | None:
        """Any name will do."""
        return None

    def same_key(self, object: str, key: str) -> str:
        """Without case."""
        return key.lower()

    def alone(self, effect: Effect) -> float | None:
        """Keys with an exclamation mark."""
        return 0.1 if "!" in effect.key else None

    async def start(self, objects: Mapping[str, Columns]) -> None:
        """Count."""
        self.starts += 1

    async def probe(self) -> None:
        """Always there."""

    async def close(self) -> None:
        """Nothing to close."""

    async def write(self, effects: Sequence[Effect]) -> list[WriteResult]:
        """Hold what it is told."""
        self.batches.append(list(effects))
        if self.errors:
            raise self.errors.pop(0)
        for effect in effects:
            if (body := effect.body) is None:
                self.held.pop(effect.key, None)
            else:
                self.held[effect.key] = body
        return [self.answers.get(e.key) or WriteResult(Outcome.WRITTEN if e.json is not None else Outcome.DELETED) for e in effects]
