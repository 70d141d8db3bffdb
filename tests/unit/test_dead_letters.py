"""Dead letters in hand: what is open, and what a redrive sends; the topic itself is in tests/stages."""

from typing import Any

import orjson
import pytest

from agents.dead_letters import MARK, again, one_record, open_letters
from agents.maps import load_maps
from models.dead_letter import DeadLetter, cause_of
from models.envelope import Envelope, Kind, Reason
from models.errors import PermanentError
from models.flow import Flow, Route, Salesforce, Webhook
from models.flow import Target as Given
from models.write import Write
from streams.engine.stage import Output
from streams.letters import dead_letter_output
from streams.topics import Topics
from tests.support.memory import MemoryRecord
from tests.support.pipeline import Pipeline
from tests.support.toy_target import Target, ToyOptions

TOPICS = Topics("t")
FLOW = Flow(
    connections={
        "acme": Salesforce.model_validate({"type": "salesforce", "auth": {"flow": "jwt", "client_id": "x"}}),
        "forms": Webhook.model_validate({"type": "webhook", "secrets": ["made-up"]}),
    },
    targets={"toy": Given(type="toy")},
    routes={"people": Route(sources=("acme/Contact",), to="toy", map="person")},
)
IN = TOPICS.inbound("acme/Contact")
ID = "003000000000001AAA"


def dead(offset: int = 7, stage: str = "process", headers: Any = (), **more: Any) -> Output:
    topic = TOPICS.writes("toy") if stage == "write" else IN
    record = MemoryRecord(topic, offset, ID.encode(), b"\xffbytes", headers, partition=2)
    given = {"redrive_to": IN, "route": "people", **more}
    return dead_letter_output(stage, record, PermanentError("no"), topics=TOPICS, **given)


def record(out: Output, offset: int = 0) -> MemoryRecord:
    return MemoryRecord(out.topic, offset, out.key, out.value, out.headers)


def letter(out: Output) -> DeadLetter:
    [found] = open_letters([record(out)])
    return found


@pytest.mark.parametrize("value", [b"", b"\xff\xfe", b"null", b"[]", b"{}", b'{"id":1}', b"x" * 1_000_000, b"[" * 100_000])
def test_a_malformed_letter_is_listed_as_such_and_hides_no_other(value: bytes) -> None:
    strange = MemoryRecord(TOPICS.dead_letters, 0, b"k", value)
    found = open_letters([strange, record(dead())])
    assert {entry.stage for entry in found} == {"dead-letters", "process"}
    assert next(entry.original_value for entry in found if entry.stage == "dead-letters") == value


def test_the_same_failure_again_is_one_letter_and_a_mark_closes_it() -> None:
    first, other = dead(), dead(offset=8)
    assert len(open_letters([record(first), record(first), record(other)])) == 2
    mark = Output(TOPICS.dead_letters, first.key, None, [(MARK, b"run")])
    assert [entry.offset for entry in open_letters([record(first), record(other), record(mark)])] == [8]
    assert len(open_letters([record(first), record(mark), record(first)])) == 1


def test_a_redriven_event_is_its_original_with_reason_run_and_route() -> None:
    original = Envelope(kind=Kind.CHANGE, reason=Reason.SNAPSHOT, received=5, channel="/data/X", epoch=2, position=9, run="old").headers()
    out = again(letter(dead(headers=original)), FLOW, TOPICS, "run-1")
    assert out is not None
    assert (out.topic, out.key, out.value) == (IN, ID.encode(), b"\xffbytes")
    found = Envelope.from_headers(out.headers)
    assert (found.reason, found.run, found.route) == (Reason.REDRIVE, "run-1", "people")
    assert (found.kind, found.channel, found.epoch, found.position, found.received) == (Kind.CHANGE, "/data/X", 2, 9, 5)
    assert len(dict(out.headers)) == len(out.headers)


def test_a_redriven_hook_keeps_the_version_of_its_first_coming() -> None:
    original = Envelope(kind=Kind.HOOK, reason=Reason.LIVE, received=5).headers()
    out = again(letter(dead(headers=original)), FLOW, TOPICS, "run-1")
    assert out is not None
    assert Envelope.from_headers(out.headers).position == 7
    once_more = again(letter(record_as_output(out)), FLOW, TOPICS, "run-2")
    assert once_more is not None
    assert Envelope.from_headers(once_more.headers).position == 7


def record_as_output(sent: Output) -> Output:
    """The redriven record fails once more, at a later offset."""
    return dead(offset=99, headers=sent.headers)


def test_poison_headers_are_kept() -> None:
    out = again(letter(dead(headers=[("kind", b"\xff"), ("reason", b"?")])), FLOW, TOPICS, "run-1")
    assert out is not None
    assert out.headers == [("kind", b"\xff"), ("reason", b"redrive"), ("run", b"run-1"), ("route", b"people")]


def test_a_letter_too_large_for_its_original_sends_nothing_by_itself() -> None:
    assert again(letter(dead()).model_copy(update={"value": None}), FLOW, TOPICS, "run-1") is None


async def test_a_failed_write_is_redriven_as_the_record_is_now_and_changes_nothing_of_it() -> None:
    pipeline = Pipeline(FLOW, load_maps(FLOW, {"toy": Target("toy", ToyOptions(), "t")}))
    row = {"Id": ID, "Email": "a@b.example", "IsDeleted": False, "SystemModstamp": "2024-01-01T00:00:00.000+0000"}
    row |= dict.fromkeys(load_maps(FLOW, {"toy": Target("toy", ToyOptions(), "t")}).fields("acme/Contact")) | row
    began = Envelope(kind=Kind.ROW, reason=Reason.LIVE, received=1, channel="/data/X", epoch=1, began=5).headers()
    [first] = await pipeline.feed(MemoryRecord(IN, 0, ID.encode(), orjson.dumps(row), began))
    out = again(letter(dead(stage="write", source=first.source, revision=1)), FLOW, TOPICS, "run-1")
    assert out is not None
    [write] = await pipeline.feed(MemoryRecord(out.topic, 1, out.key, out.value, out.headers))
    assert isinstance(write, Write)
    assert (write.body, write.key, write.route) == (first.body, first.key, "people")
    assert write.always
    assert write.revision > first.revision


def test_a_failed_write_of_a_hook_is_redriven_as_news_older_than_all() -> None:
    out = again(letter(dead(stage="write", source="forms/a/b", redrive_to=TOPICS.inbound("forms"))), FLOW, TOPICS, "run-1")
    assert out is not None
    assert (out.topic, out.key, out.value) == (TOPICS.inbound("forms"), b"a/b", b"{}")
    found = Envelope.from_headers(out.headers)
    assert (found.kind, found.reason, found.position) == (Kind.HOOK, Reason.REDRIVE, None)


def test_a_gap_is_redriven_by_asking_for_its_record_not_by_its_event() -> None:
    sent = again(letter(dead(stage="subscribe", route=None)), FLOW, TOPICS, "run-1")
    assert sent is not None
    assert (sent.topic, sent.key) == (TOPICS.fetch("acme"), ID.encode())
    assert orjson.loads(sent.value or b"") == {"sobject": "Contact", "id": ID}
    assert dict(sent.headers) == {"reason": b"redrive", "run": b"run-1"}


@pytest.mark.parametrize("key", ["003*", "000000000000000AAA", "", "003000000000001AA'", "003000000000001AAA\n"])
def test_what_names_no_single_record_is_not_asked_for(key: str) -> None:
    wild = MemoryRecord(IN, 1, key.encode(), b"{}", ())
    out = dead_letter_output("subscribe", wild, PermanentError("no"), topics=TOPICS, redrive_to=IN)
    assert not one_record(letter(out))
    assert one_record(letter(dead(stage="subscribe")))


def test_equal_causes_of_different_records_are_one_cause() -> None:
    reasons = [f"field Name of {id} is empty, {n} of '{id}'" for id, n in (("0031x00001OXjxiAAD", 1), ("003Qx00000Ke4RtIAJ", 22))]
    assert len({cause_of("process", None, "PermanentError", reason) for reason in reasons}) == 1
    assert cause_of("process", None, "PermanentError", "field Name is empty") != cause_of(
        "process", None, "PermanentError", "field Phone is empty"
    )
