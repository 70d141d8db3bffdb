"""Targets of the random world in memory: rows with or without turns, and the sandbox's users behind the file of the target that renames."""

from collections.abc import Sequence
from urllib.parse import unquote

import orjson

from agents.outbound import Answer
from agents.targets.base import Effect, Options, TargetLike
from deploy.sandbox.iterable.project import Project
from models.write import Body, Outcome, WriteResult


class Rows:
    """A target that keeps whole rows, with or without comparing turns. `unique`: a field that two rows may not have the same in."""

    options_class = Options
    batch_records, batch_bytes = 100, 1_000_000
    requests_per_second: float | None = None
    renames = False
    key_field: str | None = None
    default_object: str | None = None

    def __init__(self, compares: bool, unique: str | None = None) -> None:
        self.compares, self.unique = compares, unique
        self.rows: dict[str, tuple[int, Body | None]] = {}
        self.elections: dict[str, int] = {}

    @staticmethod
    def refusal(name: str) -> str | None:
        """Any name will do."""
        return None

    def same_key(self, object: str, key: str) -> str:
        return key

    def alone(self, effect: Effect) -> float | None:
        return None

    async def write(self, effects: Sequence[Effect]) -> list[WriteResult]:
        return [WriteResult(self._write(effect)) for effect in effects]

    def _write(self, effect: Effect) -> Outcome:
        if self.compares and effect.turn < self.rows.get(effect.key, (-1, None))[0]:
            return Outcome.STALE
        if self.unique and not all(self._gives_way(effect, key) for key in self.rows if key != effect.key):
            return Outcome.STALE
        self.elections[effect.key] = effect.meta.election
        self.rows[effect.key] = (effect.turn, effect.body)
        return Outcome.WRITTEN if effect.body else Outcome.DELETED

    def _gives_way(self, effect: Effect, key: str) -> bool:
        """Whether a row does not hold the value, or no longer: an earlier election of the group let it stand."""
        (turn, body), mine = self.rows[key], effect.body
        if not (self.unique and body and mine and mine[self.unique] is not None and mine[self.unique] == body[self.unique]):
            return True
        assert effect.meta.election, "a record that is in no group meets its value in another row"
        if earlier := self.elections[key] <= effect.meta.election:
            self.rows[key] = turn, body | {self.unique: None}
        return earlier


class Users:
    """The wire of the sandbox's users, without a wire."""

    def __init__(self) -> None:
        self.project = Project()

    async def request(self, method: str, path: str, body: bytes | None = None) -> Answer:
        name, _, query = path.removeprefix("/api/users/").partition("?email=")
        told = orjson.loads(body) if body else None
        if name == "bulkUpdate":
            status, answer = self.project.bulk_update(told)
        elif name == "updateEmail":
            status, answer = self.project.update_email(told)
        else:
            status, answer = self.project.get(unquote(query)) if query else self.project.delete(unquote(name))
        self.project.settle()
        return Answer(status, {}, orjson.dumps(answer))


class Calls:
    """Those of a writer, made at once."""

    def __init__(self, target: TargetLike) -> None:
        self.target = target

    async def start(self, partition: object) -> None:
        """Nothing to start."""

    def extend(self) -> None:
        """These hold whatever they are given."""

    async def write(self, effects: Sequence[Effect], partition: object, **_: object) -> list[WriteResult]:
        return await self.target.write(effects)
