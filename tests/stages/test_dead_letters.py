"""The dead-letter topic on a real Kafka: listed, redriven once, and found again where the letter was too small for its original."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents.dead_letters import list_letters, redrive
from models.errors import PermanentError, SettingsError
from models.flow import Flow, Route, Salesforce
from models.flow import Target as Given
from models.settings import Settings
from streams.consume import read_all
from streams.engine.stage import Output
from streams.letters import dead_letter_output
from streams.publish import send
from streams.topics import Topics, ensure
from tests.support.broker import settings_for, topics
from tests.support.memory import MemoryRecord

pytestmark = pytest.mark.kafka
FLOW = Flow(
    connections={"acme": Salesforce.model_validate({"type": "salesforce", "auth": {"flow": "jwt", "client_id": "x"}})},
    targets={"toy": Given(type="toy")},
    routes={"people": Route(sources=("acme/Contact",), to="toy", map="person")},
)


class Desk:
    """An installation with dead letters."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.topics = settings, Topics(settings.installation)
        self.inbound = self.topics.inbound("acme/Contact")

    async def die(self, offset: int, reason: str, *, value: bytes = b"original", to: str | None = None, partition: int = 0) -> str:
        record = MemoryRecord(self.inbound, offset, b"003", value, [("kind", b"change"), ("reason", b"live")], partition=partition)
        out = dead_letter_output("process", record, PermanentError(reason), topics=self.topics, redrive_to=to or self.inbound)
        await send(self.settings, [out])
        return (out.key or b"").decode()

    async def arrived(self) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
        return [(r.key, r.value, dict(r.headers)) for r in await read_all(self.settings, self.inbound)]


@pytest.fixture
async def desk(kafka: str, tmp_path: Path) -> AsyncIterator[Desk]:
    settings = settings_for(kafka, tmp_path, partitions=2)
    async with topics(settings, []):
        await ensure(settings, Topics(settings.installation).all(FLOW, settings))
        found = Desk(settings)
        yield found


async def test_a_letter_goes_once_and_is_closed(desk: Desk) -> None:
    meant, other = await desk.die(1, "no colour"), await desk.die(2, "no shape")
    await send(desk.settings, [Output(desk.topics.dead_letters, b"strange", b"\xff")])
    assert len(await list_letters(desk.settings)) == 3
    done = await redrive(desk.settings, FLOW, meant)
    assert (list(done.sent), dict(done.left)) == ([meant], {})
    [(key, value, headers)] = await desk.arrived()
    assert (key, value, headers["reason"], headers["run"]) == (b"003", b"original", b"redrive", done.run.encode())
    assert {letter.id for letter in await list_letters(desk.settings)} == {other, "strange"}
    with pytest.raises(SettingsError, match="no open dead letter"):
        await redrive(desk.settings, FLOW, meant)


async def test_a_cause_redrives_all_of_it_and_names_what_must_stay(desk: Desk) -> None:
    ids = [await desk.die(n, f"no colour {n}", to="t.in.gone" if n == 2 else None) for n in range(4)]
    other = await desk.die(9, "no shape")
    cause = next(letter.cause for letter in await list_letters(desk.settings) if letter.id == ids[0])
    assert len(await list_letters(desk.settings, cause=cause[:6])) == 4
    done = await redrive(desk.settings, FLOW, cause[:6])
    assert list(done.sent) == [ids[0], ids[1], ids[3]]
    assert list(done.left) == [ids[2]]
    assert len(await desk.arrived()) == 3
    assert {letter.id for letter in await list_letters(desk.settings)} == {ids[2], other}


async def test_an_original_too_large_for_its_letter_is_taken_from_where_it_came(desk: Desk) -> None:
    large = b"x" * 990_000
    await send(desk.settings, [Output(desk.inbound, b"003", large, [("kind", b"change")], partition=1)])
    there = await desk.die(0, "no colour", value=large, partition=1)
    gone = await desk.die(77, "no shape", value=large, partition=1)
    assert list((await redrive(desk.settings, FLOW, there)).sent) == [there]
    assert [value for _, value, _ in await desk.arrived()] == [large, large]
    assert list((await redrive(desk.settings, FLOW, gone)).left) == [gone]


@pytest.mark.parametrize("what", ["", "x", "no-such-id", "*", "\x00", "a" * 5000])
async def test_what_means_no_letter_redrives_none(desk: Desk, what: str) -> None:
    await desk.die(1, "no colour")
    with pytest.raises(SettingsError):
        await redrive(desk.settings, FLOW, what)
    assert await desk.arrived() == []
