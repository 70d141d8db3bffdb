"""The verdict of a soak: each thing that must not be is seen and said, and nothing else is."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.oracle import Verdict
from deploy.soak.counts import Counts, count
from deploy.soak.ends import End, ends, unexplained
from deploy.soak.faults import Struck, damage, poison
from deploy.soak.schedule import Planned
from deploy.soak.verdict import Report, _from_a_zombie, incidents_by_cause, letters_by_cause, split_latency

CONTACT = "003xx0000000001AAA"


def planned(name: str, target: str, variant: str = "", number: int = 0) -> Planned:
    return Planned(number, name, target, 10.0, 2.0, variant)


def struck(name: str, target: str, begun: float = 100.0, ended: float = 102.0) -> Struck:
    return Struck(planned(name, target), begun, ended)


def event(position: int, record: str = CONTACT, **more: str) -> Any:
    headers = {"kind": "change", "epoch": "1", "position": str(position)} | more
    return SimpleNamespace(key=record.encode(), value=b"{}", headers=[(name, value.encode()) for name, value in headers.items()])


def write(route: str = "contacts", source: str = f"acme/Contact/{CONTACT}", revision: int = 1, op: str = "write", key: str = "k") -> Any:
    body = {"route": route, "source": source, "revision": revision, "op": op, "key": key}
    return SimpleNamespace(value=json.dumps(body).encode())


def counted(events: Sequence[Any] = (), writes: Sequence[Any] = (), commits: Sequence[Any] = (), accepted: Sequence[str] = ()) -> Counts:
    return count({"t.in.acme.Contact": events, "t.writes.warehouse": writes}, "t", commits, accepted)


def test_one_of_each_is_no_problem() -> None:
    signup = write("signups", "forms/hook-1")
    found = counted(
        [event(7), event(8)], [write(), write(revision=2), signup], [(7, "Contact", [CONTACT]), (8, "Contact", [CONTACT])], ["hook-1"]
    )
    assert (found.events, found.writes, found.problems()) == (2, 3, [])


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (lambda: counted([], [], [(7, "Contact", [CONTACT])]), "neither in Kafka"),
        (lambda: counted([event(7, "003xx0000000002AAA")], [], [(7, "Contact", [CONTACT])]), "neither in Kafka"),
        (lambda: counted([event(7), event(7)]), "more than once"),
        (lambda: counted([], [write(), write()]), "outputs were written"),
        (lambda: counted([], [write("signups", "forms/a", 1), write("signups", "forms/a", 2)], [], ["a"]), "exactly one output"),
        (lambda: counted([], [], [], ["a"]), "exactly one output"),
        (lambda: counted([], [write("signups", "forms/never-accepted")]), "exactly one output"),
    ],
)
def test_what_is_missing_or_there_twice_is_told(found: Any, word: str) -> None:
    (told,) = found().problems()
    assert word in told


def test_other_objects_poison_and_runs_are_not_counted_as_events_of_the_way() -> None:
    commits = [(7, "Task", ["00Txx0000000001AAA"]), (8, "Contact", [42]), (9, "Contact", ["no id"])]
    found = counted([event(7), event(7, run="replay-1"), event(7, kind="row")], [], commits)
    assert (found.events, found.rows, found.problems()) == (1, 2, [])


def test_an_event_that_says_nothing_is_told_by_its_incident_and_by_no_other() -> None:
    commits = [(7, "Contact", [CONTACT]), (8, "Contact", ["000000000000000AAA"]), (9, "Lead", ["00Q*"])]
    told = [
        "acme/data/ChangeEvents@1/7/0/Contact/gap",
        "acme/data/ChangeEvents@1/8/0/Contact/overflow",
        "acme/data/ChangeEvents@1/9/0/Lead/wildcard",
    ]
    assert count({}, "t", commits, [], told).problems() == []
    for left_out in told:
        assert len(count({}, "t", commits, [], [name for name in told if name != left_out]).events_missing) == 1
    assert len(count({}, "t", commits, [], ["acme/data/ChangeEvents@1/7/acme/Contact/position refused"]).events_missing) == 3


def incident(state: str = "closed", proof: str = "read again") -> dict[str, str]:
    return {"id": "i", "cause": "gap", "state": state, "proof": proof}


@pytest.mark.parametrize(
    ("bad", "word"), [(incident("open", ""), "is open"), (incident("failed"), "is failed"), (incident(proof=""), "no proof")]
)
def test_every_incident_is_to_be_closed_with_a_proof(bad: dict[str, str], word: str) -> None:
    assert incidents_by_cause([incident(), incident()]) == ({"gap": 2}, [])
    _, (told,) = incidents_by_cause([incident(), bad])
    assert word in told


def log(tmp_path: Path, *lines: Any) -> Path:
    file = tmp_path / "server.log"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


def ended(how: str, at: str = "1970-01-01T00:01:41Z") -> dict[str, str]:
    return {"event": "process ended, starting it again", "how": how, "timestamp": at, "level": "error"}


def test_ends_are_read_with_the_last_words_before_them(tmp_path: Path) -> None:
    file = log(
        tmp_path,
        {
            "event": "commit failed",
            "level": "critical",
            "reason": "another process took over (fenced)",
            "timestamp": "1970-01-01T00:01:40Z",
        },
        ended("exit code 70"),
        ended("signal 9"),
        "headrace: Kafka at x cannot be reached",
        ended("exit code 1"),
        {"event": "worker started", "level": "info"},
    )
    first, second, third = ends("worker", file)
    assert (first.at, first.how, second.why) == (101.0, "exit code 70", "")
    assert "fenced" in first.why and "cannot be reached" in third.why


def test_every_error_of_a_chain_is_read_and_what_comes_after_the_last_words_is_not(tmp_path: Path) -> None:
    trace = (
        "Traceback:\n  File aiokafka/x.py\naiokafka.errors.KafkaConnectionError: a\n  + Exception Group:\n"
        "    | models.errors.TemporaryError: b\nasyncio.CancelledError"
    )
    file = log(
        tmp_path,
        {"event": "a fault", "level": "critical", "exception": trace},
        "--- Logging error ---",
        "Arguments: ()",
        ended("exit code 1"),
    )
    (end,) = ends("worker", file)
    assert end.raised.splitlines() == [
        "aiokafka.errors.KafkaConnectionError: a",
        "models.errors.TemporaryError: b",
        "asyncio.CancelledError",
    ]
    assert end.why == "a fault: asyncio.CancelledError"


def test_no_log_is_no_end(tmp_path: Path) -> None:
    assert ends("worker", tmp_path / "none.log") == []


@pytest.mark.parametrize(
    ("end", "fault", "explained"),
    [
        (End("worker", 100.5, "signal 9", ""), struck("kill", "worker"), True),
        (End("worker", 100.5, "signal 9", ""), struck("kill", "worker-2"), False),
        (End("worker", 100.5, "signal 9", ""), struck("suspend", "worker"), False),
        (End("worker", 300.0, "signal 9", ""), struck("kill", "worker"), False),
        (End("worker", 103.0, "exit code 70", "commit failed: fenced"), struck("suspend", "worker"), True),
        (End("worker", 103.0, "exit code 70", "commit failed: fenced"), struck("suspend", "worker-2"), False),
        (End("worker", 90.0, "exit code 70", "commit failed: fenced"), struck("suspend", "worker"), False),
        (End("worker", 103.0, "exit code 70", "takeover failed: Corruption: x"), struck("state-damaged", "worker"), True),
        (End("worker", 103.0, "exit code 70", "takeover failed: Corruption: x"), struck("state-lost", "worker"), False),
        (End("worker", 103.0, "exit code 1", "Kafka cannot be reached"), struck("away", "kafka"), True),
        (End("worker", 103.0, "exit code 1", "KeyError: 'x'"), struck("away", "kafka"), False),
        (
            End("worker", 103.0, "exit code 70", "commit failed: x", "KafkaConnectionError: x\nAssertionError: y"),
            struck("away", "kafka"),
            False,
        ),
        (
            End("worker", 103.0, "exit code 70", "takeover failed: TaskGroup", "aiokafka.errors.KafkaConnectionError: x"),
            struck("kill", "kafka"),
            True,
        ),
        (End("worker", 103.0, "exit code 70", "commit failed: aiokafka was odd"), struck("kill", "kafka"), False),
        (End("worker", 103.0, "exit code 70", "x", "asyncio.CancelledError\nTimeoutError\nFatalError: y"), struck("kill", "kafka"), True),
        (
            End("worker", 103.0, "exit code 1", "x", "FatalError: Kafka is not to be reached\nCancelledError"),
            struck("kill", "kafka"),
            False,
        ),
        (End("worker", 103.0, "exit code 1", "Kafka cannot be reached"), struck("away", "postgres"), False),
        (End("worker", 103.0, "signal 11", ""), struck("kill", "worker"), False),
    ],
)
def test_an_end_is_explained_by_the_fault_that_makes_it_and_by_no_other(end: End, fault: Struck, explained: bool) -> None:
    assert (unexplained([end], [fault]) == []) is explained


def letter(stage: str, reason: str) -> dict[str, str]:
    return {"stage": stage, "reason": reason}


def test_dead_letters_of_allowed_causes_are_counted_and_all_others_told() -> None:
    refused = letter("subscribe", "position refused: Salesforce refused position 7")
    quality = letter("process", "person 1 fails quality: email required")
    found, wrong = letters_by_cause([refused, quality, quality], [struck("invalid-replay", "salesforce")])
    assert (found, wrong) == ({"position refused": 1, "quality": 2}, [])
    assert letters_by_cause([refused, refused], [struck("invalid-replay", "salesforce")])[1] != []
    assert letters_by_cause([letter("write", "position refused: x")], [struck("invalid-replay", "salesforce")])[1] != []
    assert letters_by_cause([letter("write", "Iterable answers 500")], [])[1] != []


def test_samples_are_parted_by_the_moment_of_the_commit() -> None:
    latency: Any = SimpleNamespace(samples=[1.0, 2.0, 3.0], commits=[90_000.0, 101_000.0, 150_000.0])
    assert split_latency(latency, [struck("kill", "worker")]) == ([1.0, 3.0], [2.0])


def test_only_users_after_a_suspended_worker_may_be_a_zombies_work() -> None:
    verdict = Verdict()
    verdict.differs("user a@example.org: missing")
    assert _from_a_zombie(verdict, [struck("suspend", "worker")])
    assert not _from_a_zombie(verdict, [struck("suspend", "subscribe")])
    assert not _from_a_zombie(verdict, [struck("kill", "worker")])
    verdict.differs("person 003: missing")
    assert not _from_a_zombie(verdict, [struck("suspend", "worker")])


def test_a_report_holds_only_without_problems_and_with_something_compared() -> None:
    assert not Report(1, 60).holds
    assert Report(1, 60, compared={"person": 1}).holds
    assert not Report(1, 60, compared={"person": 1}, problems=["x"]).holds
    json.dumps(Report(1, 60, struck=[struck("kill", "worker")]).as_dict())


@pytest.mark.parametrize("variant", ["flip", "cut"])
def test_damage_changes_files_but_the_lock_and_is_the_same_each_time(variant: str, tmp_path: Path) -> None:
    states = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        (folder / "records" / "0").mkdir(parents=True)
        for name in ("CURRENT", "000001.sst", "LOCK"):
            (folder / "records" / "0" / name).write_bytes(random.Random(name).randbytes(500))
        before = (folder / "records" / "0" / "LOCK").read_bytes()
        damage(folder, planned("state-damaged", "worker", variant, 3))
        assert (folder / "records" / "0" / "LOCK").read_bytes() == before
        states.append([(folder / "records" / "0" / name).read_bytes() for name in ("CURRENT", "000001.sst")])
    assert states[0] == states[1]
    assert states[0] != [random.Random(name).randbytes(500) for name in ("CURRENT", "000001.sst")]
    damage(tmp_path / "none", planned("state-damaged", "worker", variant))


def test_each_poison_is_a_line_of_its_own() -> None:
    lines = {poison(planned("poison", "org", variant, number)) for variant in ("no-list", "no-header", "no-id") for number in range(3)}
    assert len(lines) == 9
    assert all(json.loads(line)["payload"]["Poison"] in range(3) for line in lines)
