"""A log that lost what was not read: told once, waited on, accepted by a command, and until then nothing is jumped over."""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from models.errors import SettingsError
from models.flow import Flow
from streams.consume import read_all
from streams.engine.loss import Loss, letter, told
from streams.engine.stage import Output
from streams.kafka import client_options
from streams.losses import accept, losses, todo
from streams.publish import TransactionalPublisher, send
from streams.topics import Topic, Topics, ensure
from tests.support.flows import CONTACTS, PEOPLE, flow
from tests.support.workers import Bench, Worker, bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

HOOKS = flow().model_copy(update={"connections": {"x": flow().connections["shop"]}})
"""The tests' in-topic `in.x` is a webhook's: the source that needs the most care."""


class Logs:
    """What happens to the live in-topic of a bench."""

    def __init__(self, b: Bench, admin: AIOKafkaAdminClient) -> None:
        self.b, self.admin, self.names = b, admin, Topics(b.settings.installation)

    async def ends(self) -> dict[int, int]:
        """End of each partition."""
        found = Counter(dict.fromkeys(range(self.b.settings.partitions), 0))
        for record in await read_all(self.b.settings, self.b.live):
            found[record.partition] = max(found[record.partition], record.offset + 1)
        return dict(found)

    async def cut(self, partition: int, before: int) -> None:
        """As retention does."""
        await self.admin.delete_records({TopicPartition(self.b.live, partition): RecordsToDelete(before_offset=before)})

    async def remake(self) -> None:
        """Delete the topic and make it again, empty."""
        await self.admin.delete_topics([self.b.live])
        while self.b.live in await self.admin.list_topics():  # noqa: ASYNC110 - Kafka tells nobody
            await asyncio.sleep(0.02)
        await ensure(self.b.settings, [Topic(self.b.live, "", "delete", 86_400_000, "", "")])

    async def letters(self) -> list[tuple[str, bool]]:
        """Everything ever written to the dead-letter topic: id, and whether it is a letter (not its closing)."""
        return [((r.key or b"").decode(), r.value is not None) for r in await read_all(self.b.settings, self.names.dead_letters)]

    async def waits(self, worker: Worker) -> dict[str, str]:
        """Once the worker has taken over: what is open, reason by id."""
        await worker.said("partitions taken over")
        return {id: letter.reason for id, letter in (await told(self.b.settings)).items()}

    async def accepted(self, what: str = "all", flow: Flow = HOOKS) -> None:
        """By the operator."""
        await accept(self.b.settings, flow, await losses(self.b.settings, what))


@asynccontextmanager
async def logs(kafka: str, state: Path, **settings: Any) -> AsyncIterator[Logs]:
    async with bench(kafka, state, **settings) as b:
        names = Topics(b.settings.installation)
        await ensure(b.settings, [Topic(name, "", "delete", None, "", "") for name in (names.dead_letters, names.processes)])
        admin = AIOKafkaAdminClient(**client_options(b.settings))
        await admin.start()
        try:
            yield Logs(b, admin)
        finally:
            await admin.close()


async def seqs(b: Bench) -> Counter[int]:
    """How often each event came out."""
    return Counter(json.loads(r.value or b"")["seq"] for r in await read_all(b.settings, b.out))


async def test_what_retention_ate_is_told_once_and_waits_for_the_operator_while_the_others_go_on(kafka: str, tmp_path: Path) -> None:
    async with logs(kafka, tmp_path) as log:
        b = log.b
        await b.send(400)
        first = await b.start()
        await b.arrived(400)
        assert await first.stop() == 0
        read = (await log.ends())[0]
        await b.send(40, partition=0)
        for number in (1, 2, 3):
            await b.send(20, partition=number)
        await log.cut(0, read + 15)
        second = await b.start()
        await b.arrived(460)
        open_ = await log.waits(second)
        assert list(open_) == [f"{b.live}/0/{read}/-"]
        assert f"records {read} to {read + 14} of {b.live} partition 0 were removed" in next(iter(open_.values()))
        await b.send(5, partition=0)
        await b.send(10, lane="bulk", partition=0)
        await b.arrived(470)  # the other topic of this partition number is not held up
        assert await second.stop() == 0
        third = await b.start()
        assert await log.waits(third) == open_
        assert await log.letters() == [(next(iter(open_)), True)], "told at each restart"
        await log.accepted(b.live)
        await b.arrived(470 + 25 + 5)
        assert [way for _, way in await log.letters()] == [True, False]
        lost = set(range(400, 415))
        assert await seqs(b) == Counter(set(range(515)) - lost)
        assert await third.stop() == 0
        last = await b.start()
        assert await log.waits(last) == {}
        await b.send(10, partition=0)
        await b.arrived(510)
        assert await seqs(b) == Counter(set(range(525)) - lost)
        assert sum(int(v) for v in (await b.changelog()).values()) == 510


@pytest.mark.parametrize("after", [pytest.param(200, id="a shorter log", marks=pytest.mark.slow), pytest.param(1200, id="a longer log")])
async def test_a_topic_made_anew_is_no_new_topic_and_goes_on_above_the_offsets_of_the_old(kafka: str, tmp_path: Path, after: int) -> None:
    async with logs(kafka, tmp_path) as log:
        b = log.b
        await b.send(800)
        first = await b.start()
        await b.arrived(800)
        assert await first.stop() == 0
        old = await log.ends()
        await log.remake()
        await b.send(after)
        second = await b.start()
        assert {tuple(id.split("/")[1:3]) for id in await log.waits(second)} == {(str(n), str(end)) for n, end in old.items()}
        await b.send(30, lane="bulk")
        await b.arrived(830)
        assert await seqs(b) == Counter([*range(800), *range(800 + after, 830 + after)]), "the new log was read from its start"
        await log.accepted()
        await b.arrived(830 + after)
        assert await seqs(b) == Counter(range(830 + after))
        await b.send(100)
        await b.arrived(930 + after)
        assert await seqs(b) == Counter(range(930 + after))
        for record in await read_all(b.settings, b.live):
            assert record.offset >= old[record.partition], "an offset that was used before: versions and turns would fall behind"
            assert record.value is not None, "a replay would meet what only fills"
        assert await second.stop() == 0
        third = await b.start()
        assert await log.waits(third) == {}
        assert await third.stop() == 0
        assert b.stored("state") == await b.changelog()


async def test_a_log_that_is_cut_while_it_is_read_ends_the_process_and_then_waits(kafka: str, tmp_path: Path) -> None:
    async with logs(kafka, tmp_path, partitions=1) as log:
        b = log.b
        await b.send(100)
        first = await b.start()
        await b.arrived(100)
        first.process.send_signal(signal.SIGSTOP)
        await b.send(300)
        await b.send(300)
        await log.cut(0, (await log.ends())[0] - 50)
        first.process.send_signal(signal.SIGCONT)
        assert await first.code() == 70
        assert "the log no longer holds what was not read" in first.log.read_text()
        second = await b.start()
        ((id, reason),) = (await log.waits(second)).items()
        read = int(id.split("/")[2])
        assert f"records {read} to 649 " in reason
        await log.accepted()
        await b.arrived(read + 50)
        assert await seqs(b) == Counter([*range(read), *range(650, 700)])


async def test_records_removed_before_the_first_start_are_told_too(kafka: str, tmp_path: Path) -> None:
    async with logs(kafka, tmp_path) as log:
        b = log.b
        await b.send(20, partition=1)
        await b.send(20, partition=2)
        await log.cut(1, 5)
        worker = await b.start()
        await b.arrived(20)
        assert list(await log.waits(worker)) == [f"{b.live}/1/-1/-"]
        await log.accepted()
        await b.arrived(35)
        assert await seqs(b) == Counter(range(5, 40))


@pytest.mark.slow
async def test_an_offset_that_a_person_set_back_is_read_from_and_is_no_loss(kafka: str, tmp_path: Path) -> None:
    async with logs(kafka, tmp_path, partitions=1) as log:
        b = log.b
        await b.send(100)
        first = await b.start()
        await b.arrived(100)
        assert await first.stop() == 0
        async with TransactionalPublisher(b.settings, f"{b.settings.installation}.person") as person:
            await person.send([], offsets={TopicPartition(b.live, 0): 60}, group=b.settings.installation)
        second = await b.start()
        await b.arrived(140)
        assert await log.waits(second) == {}
        assert await seqs(b) == Counter([*range(100), *range(60, 100)])


async def test_a_loss_that_is_no_more_is_closed_without_touching_the_offset(kafka: str, tmp_path: Path) -> None:
    async with logs(kafka, tmp_path, partitions=1) as log:
        b = log.b
        await b.send(100)
        worker = await b.start()
        await b.arrived(100)
        await send(b.settings, [letter(Loss(b.live, 0, 30, 40, 100), log.names)])
        before = await b.committed(b.live)
        await log.accepted()
        assert (await b.committed(b.live), await told(b.settings)) == (before, {})
        await b.send(10)
        await b.arrived(110)
        assert await seqs(b) == Counter(range(110))
        assert await worker.stop() == 0


async def test_while_a_receiver_runs_a_webhooks_new_log_is_not_moved(kafka: str, tmp_path: Path) -> None:
    async with logs(kafka, tmp_path, partitions=1) as log:
        b = log.b

        async def receiver(at: float) -> None:
            beat = json.dumps({"role": "receive", "at": int(at * 1000)}).encode()
            await send(b.settings, [Output(log.names.processes, b"receive@here", beat)])

        await b.send(5)
        await send(b.settings, [letter(Loss(b.live, 0, 30, 0, 5), log.names)])
        await receiver(time.time())
        with pytest.raises(SettingsError, match="stop the receivers"):
            await log.accepted()
        assert len(await told(b.settings)) == 1
        await receiver(time.time() - 60)  # gone without a word
        await log.accepted()
        assert await told(b.settings) == {}
        assert [(r.offset >= 30, r.value is not None) for r in await read_all(b.settings, b.live)] == [(True, True)] * 5


async def test_an_acceptance_that_was_interrupted_can_be_repeated(kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with logs(kafka, tmp_path, partitions=1) as log:
        b = log.b
        await b.send(20)
        await send(b.settings, [letter(Loss(b.live, 0, 100, 0, 20), log.names)])
        whole, calls = TransactionalPublisher.send, [0]

        async def breaking(self: TransactionalPublisher, *arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if options.get("offsets"):
                raise ConnectionError("pulled the plug")
            return await whole(self, *arguments, **options)

        monkeypatch.setattr(TransactionalPublisher, "send", breaking)
        with pytest.raises(ConnectionError):
            await log.accepted()
        assert len(await told(b.settings)) == 1
        monkeypatch.undo()
        await log.accepted()
        worker = await b.start()
        await b.arrived(20)
        assert await log.waits(worker) == {}
        assert set(await seqs(b)) == set(range(20))


async def test_the_command_lists_losses_and_accepts_them(kafka: str, tmp_path: Path) -> None:
    async with logs(kafka, tmp_path, partitions=1) as log:
        b = log.b
        await send(b.settings, [letter(Loss(b.live, 0, 0, 0, 0), log.names)])
        (tmp_path / "flow.yaml").write_text("""
connections: {x: {type: webhook, secrets: [s], key: id}}
targets: {w: {type: postgres, dsn: "postgresql://nowhere/x"}}
routes: {r: {from: x, to: w, map: person}}
""")
        environ = {"KAFKA_BOOTSTRAP_SERVERS": kafka, "HEADRACE_INSTALLATION": b.settings.installation, "HEADRACE_PARTITIONS": "1"}

        async def accept_loss(*arguments: str) -> tuple[int | None, str]:
            command = [sys.executable, "-m", "deploy", "accept-loss", *arguments, "--flow", str(tmp_path / "flow.yaml")]
            process = await asyncio.create_subprocess_exec(*command, env=os.environ | environ, stdout=asyncio.subprocess.PIPE)
            said, _ = await process.communicate()
            return process.returncode, said.decode()

        code, said = await accept_loss()
        assert (code, f"{b.live}/0/0/-: Kafka no longer knows" in said) == (1, True)
        code, said = await accept_loss("all", "--json")
        assert (code, list(json.loads(said)["accepted"])) == (0, [f"{b.live}/0/0/-"])
        assert "sender of x" in said
        assert await accept_loss() == (0, "nothing was lost\n")


async def test_what_is_meant_must_be_open(kafka: str, tmp_path: Path) -> None:
    async with logs(kafka, tmp_path, partitions=1) as log:
        assert await losses(log.b.settings) == []
        assert await losses(log.b.settings, "all") == []
        for wrong in ("", "x", log.b.live, f"{log.b.live}/0/5/-"):
            with pytest.raises(SettingsError, match="accept-loss"):
                await losses(log.b.settings, wrong)


def test_each_topic_says_how_its_loss_is_fetched_again() -> None:
    names, given = Topics("h"), flow(contacts=CONTACTS, people=PEOPLE)
    for topic in ("h.in.acme.Contact", "h.in.acme.Contact.bulk"):
        assert todo(topic, given, names).startswith("acme/Contact: read again by the subscriber")
    assert "sender of shop" in todo("h.in.shop", given, names)
    for topic in ("h.writes.marketing", "h.fetch.acme"):
        assert todo(topic, given, names).startswith("acme/Contact, acme/Lead: read again by the subscriber")
    orders = flow(orders={"from": ["shop"], "to": "marketing", "map": "maps/order.yaml"}, people=PEOPLE)
    assert todo("h.writes.marketing.bulk", orders, names).endswith("`headrace replay orders --from …` for shop")
