"""Versions of maps on real Kafka: files are changed, two workers see it, one version results; broken, old and racing files."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agents.map_versions import Versions
from models.flow import Flow
from models.settings import Settings
from streams.consume import read_all
from streams.map_versions import Choose, MapText, OrgFields, publish, read_versions
from streams.publish import send
from streams.salesforce.runs import Run, snapshot_runs
from streams.topics import Topics
from tests.support.broker import settings_for, topics
from tests.support.flows import TARGETS, flow

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]
FIRST, SECOND, THIRD = "Email: mail\n", "Email: mail\nTitle: title\n", "Email: mail\nPhone: phone\n"


class Desk:
    """An installation with a flow of one file map and one built-in one, and workers' versions of it, each with a folder of its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder, self.tasks = settings, folder, list[asyncio.Task[None]]()

    def flow(self, name: str, text: str | None = None) -> Flow:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        if text is not None:
            (folder / "m.yaml").write_text(text)
        made = flow(
            people={"from": ["acme/Contact"], "to": "warehouse", "map": "m.yaml", "fields": "all"},
            leads={"from": ["acme/Lead"], "to": "warehouse", "map": "lead"},
        )
        return made.model_copy(update={"folder": str(folder)})

    async def worker(self, name: str, text: str | None = None) -> Versions:
        versions = await Versions(self.settings, self.flow(name, text), TARGETS, strict=True).begin()
        self.tasks.append(asyncio.create_task(versions.follow()))
        return versions

    def edit(self, name: str, text: str) -> None:
        (self.folder / name / "m.yaml").write_text(text)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not true():
                assert not any(task.done() for task in self.tasks)
                await asyncio.sleep(0.02)


@pytest.fixture
async def desk(kafka: str, tmp_path: Path) -> AsyncIterator[Desk]:
    settings = settings_for(kafka, tmp_path)
    async with topics(settings, [], [Topics(settings.installation).maps, Topics(settings.installation).runs]):
        made = Desk(settings, tmp_path)
        yield made
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)


async def twice(*versions: Versions) -> None:
    """An edit counts when it was seen the same twice."""
    for _ in range(2):
        await asyncio.gather(*(each.look() for each in versions))


async def test_an_edited_file_is_one_next_version_for_all_workers_and_a_broken_one_changes_nothing_and_says_so_once(desk: Desk) -> None:
    one, two = await asyncio.gather(desk.worker("one", FIRST), desk.worker("two", FIRST))
    assert (one.version("people"), two.version("people"), one.version("leads")) == (1, 1, 1)
    before = one.now
    desk.edit("one", SECOND)
    desk.edit("two", SECOND)
    await twice(one, two)
    await desk.until(lambda: one.version("people") == two.version("people") == 2)
    assert len(await read_all(desk.settings, Topics(desk.settings.installation).maps)) == 3, "one version of it, whoever saw it first"
    assert "Title" not in before.fields("acme/Contact"), "who holds the maps of a chunk is not disturbed"
    assert "Title" in one.now.fields("acme/Contact")
    assert two.columns("warehouse")["m"] == {"mail": "text", "title": "text"}
    with capture_logs() as said:
        desk.edit("one", "Email: mail\nTitle: 3\n")
        await twice(one)
        await twice(one)
    loud = [line for line in said if line["log_level"] == "error"]
    assert len(loud) == 1
    assert f"{desk.folder}/one/m.yaml:2: " in loud[0]["problem"]
    assert ";" in loud[0]["problem"], "and what to do"
    assert list(one.broken) == ["people"]
    assert (one.version("people"), (await read_versions(desk.settings))["people"].number) == (2, 2)
    desk.edit("one", FIRST)
    await twice(one)
    await desk.until(lambda: two.version("people") == 3)
    assert not one.broken, "set back on purpose, while the worker runs, is a change"
    await twice(two)
    assert two.version("people") == 3, "the other's file is only behind"


async def test_a_worker_that_starts_follows_the_topic_with_an_old_file_and_publishes_a_new_one(desk: Desk) -> None:
    await desk.worker("one", FIRST)
    await desk.worker("one", SECOND)
    with capture_logs() as said:
        old = await desk.worker("two", FIRST)
    assert old.version("people") == 2
    assert [line["do"] for line in said if "older" in line["event"]] == ["bring the file up to date, or: headrace map activate people"]
    with capture_logs() as said:
        broken = await desk.worker("three", "{")
    assert broken.version("people") == 2
    assert [line["in_use"] for line in said if line["log_level"] == "error"] == ["version 2"]
    assert (await desk.worker("four", THIRD)).version("people") == 3
    wanted = {"people": MapText.of("m.yaml", FIRST)}
    assert (await old.activate(wanted))["people"].number == 4
    await desk.until(lambda: old.version("people") == broken.version("people") == 4)
    assert (await old.activate(wanted, above=9))["people"].number == 10


async def test_a_new_field_of_the_org_is_one_version_and_one_run_whoever_sees_it_and_a_changed_file_keeps_it(desk: Desk) -> None:
    one, two = await asyncio.gather(desk.worker("one", FIRST), desk.worker("two", FIRST))

    async def look(*fields: str) -> list[str]:
        """Both see these fields beside the map's lines: the runs that read some."""
        held = {"acme/Contact": OrgFields(dict.fromkeys(fields, "number"))}
        await asyncio.gather(*(each.adapt(lambda route, _: held if route == "people" else {}) for each in (one, two)))
        return [run.only for run in (await snapshot_runs(desk.settings)).values() if run.by == "fields"]

    assert await look("Score__c") == [], "the first snapshot, which is still to come, has it"
    assert one.columns("warehouse")["m"] == {"mail": "text", "Score__c": "number"}
    await send(desk.settings, [Run("first", "acme/Contact", state="done").output(Topics(desk.settings.installation))])
    assert await look("Score__c", "Size__c") == await look("Score__c", "Size__c") == ["Size__c"]
    assert (one.version("people"), two.version("people"), one.version("leads")) == (3, 3, 1)
    desk.edit("one", SECOND)
    await twice(one)
    await desk.until(lambda: two.version("people") == 4)
    assert set(two.columns("warehouse")["m"]) == {"mail", "title", "Score__c", "Size__c"}
    restarted = await desk.worker("one")
    assert restarted.version("people") == 4, "a file that was there before is no change"


def always(text: MapText) -> Choose:
    return lambda _: {"people": text}


async def test_numbers_are_given_once_however_many_publish_at_once(desk: Desk) -> None:
    texts = [MapText.of("m.yaml", f"Email: mail{n}\n") for n in range(4)]
    await asyncio.gather(*(publish(desk.settings, always(text)) for text in texts))
    records = await read_all(desk.settings, Topics(desk.settings.installation).maps)
    found = (await read_versions(desk.settings))["people"]
    assert found.number == len(records) == 4
    assert {found.map.hash, *found.was} == {text.hash for text in texts}
    assert found.since > 1_600_000_000_000
