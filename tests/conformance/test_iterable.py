"""The sandbox Iterable passes the suite, and shows what only Iterable does: buckets, whole-batch refusals, learnt types, renames."""

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from msgspec.structs import replace

from agents.rules.takes import Takes
from agents.targets import make_target
from agents.targets.base import Columns, Comparing, Describing, Listing, TargetLike
from deploy.sandbox.iterable.server import Sandbox
from models.errors import PausedError
from models.flow import Target as TargetOptions
from models.write import Body
from streams import metrics
from tests.conformance.suite import ANN, BOB, CAT, B, Bench, Conformance, Fields, always


class IterableRig:
    """A project of its own in a sandbox without rate limits."""

    object = "users"

    def __init__(self, sandbox: Sandbox) -> None:
        self.columns: Columns = {"email": "text", "dataFields": "json"}
        self.sandbox = sandbox
        self.project = next(iter(sandbox.state.projects.values()))
        self.faults = sandbox.state.faults
        self.key = next(iter(sandbox.state.projects))
        sandbox.state.rates = dict.fromkeys(sandbox.state.rates, 0.0)

    def target(self, name: str, installation: str) -> TargetLike:
        options = {"type": "iterable", "api_key": self.key, "base_url": self.sandbox.url, "requests_per_second": 10_000}
        return make_target(name, TargetOptions.model_validate(options), installation)

    def body(self, key: str, fields: Fields) -> Body:
        """City stands in an object of its own, so that it clears where it is nested."""
        data: Body = {name: value for name, value in fields.items() if name != "city"}
        if "city" in fields:
            data["Home"] = {"City": fields["city"]}
        return {"email": key, "dataFields": data}

    def bad(self, key: str) -> Body:
        return {"email": key, "dataFields": {"name": key, "score": "a lot"}}

    async def held(self) -> dict[str, Fields]:
        self.project.settle()
        live = {email: dict(p.fields) for email, p in self.project.profiles.items() if not p.fields.get("deletedAtSource")}
        for fields in live.values():
            home = fields.pop("Home", {})
            fields |= {"city": home["City"]} if "City" in home else {}
        return live

    def throttled(self) -> AbstractAsyncContextManager[None]:
        return self._fault("json-429", times=0)

    def revoked(self) -> AbstractAsyncContextManager[None]:
        return self._fault("revoke")

    def down(self) -> AbstractAsyncContextManager[None]:
        return self._fault("down", variant="refuse")

    def _fault(self, name: str, **how: Any) -> AbstractAsyncContextManager[None]:
        async def on() -> None:
            self.faults.arm(name, **how)

        async def off() -> None:
            self.faults.clear(name)

        return always(on, off)

    async def lose_next_answer(self) -> None:
        self.faults.arm("reset-after-commit")

    def asked(self, word: str) -> list[list[str]]:
        """The identifiers of each request to a path with this word, in order."""
        return [entry["users"] for entry in self.sandbox.state.log if word in entry["path"]]


class TestIterable(Conformance):
    """The suite against the sandbox Iterable."""

    @pytest.fixture
    async def rig(self) -> AsyncIterator[IterableRig]:
        async with Sandbox() as sandbox:
            yield IterableRig(sandbox)

    async def test_an_equal_live_write_calls_nobody_and_a_snapshot_always_does(self, rig: IterableRig, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        assert len(rig.asked("bulkUpdate")) == 1
        rig.project.profiles.clear()
        await bench.give(bench.write(ANN, {"name": "Ann"}, reason="snapshot", always=True), bulk=True)
        assert await rig.held() == {ANN: {"name": "Ann"}}

    async def test_one_address_is_once_in_a_batch_and_the_last_word_counts(self, rig: IterableRig, bench: Bench) -> None:
        names = ["one", "two", "three"]
        await bench.give(*[bench.write(ANN, {"name": name}) for name in names], bench.write(BOB, {"name": "Bob"}, B))
        assert rig.asked("bulkUpdate") == [[ANN, BOB]]
        assert (await rig.held())[ANN] == {"name": "three"}

    async def test_a_thousand_users_are_one_request_and_one_more_are_two(self, rig: IterableRig, bench: Bench) -> None:
        await bench.give(*[bench.write(f"p{n}@example.com", {"name": "x"}, f"acme/Contact/{n}") for n in range(1001)])
        assert [len(users) for users in rig.asked("bulkUpdate")] == [1000, 1]

    async def test_a_batch_above_four_megabytes_is_halved(self, rig: IterableRig, bench: Bench) -> None:
        rig.sandbox.state.max_bytes = 20_000
        writes = [bench.write(f"p{n}@example.com", {"name": "x" * 3000}, f"acme/Contact/{n}") for n in range(12)]
        writes.append(bench.write("huge@example.com", {"name": "x" * 30_000}, "acme/Contact/huge"))
        await bench.give(*writes)
        assert len(await rig.held()) == 12
        assert [letter.source for letter in bench.dead] == ["acme/Contact/huge"]

    async def test_a_changed_address_keeps_the_profile(self, rig: IterableRig, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        profile = rig.project.profiles[ANN]
        profile.fields["theirs"] = "kept"
        await bench.give(*bench.changed_key(ANN, BOB, {"name": "Ann"}))
        assert rig.project.profiles == {BOB: profile}
        assert profile.fields == {"name": "Ann", "theirs": "kept"}

    async def test_what_others_keep_in_our_objects_stays(self, rig: IterableRig, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann", "city": "Rome"}))
        rig.project.profiles[ANN].fields["Home"]["Garden"] = "theirs"
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        assert rig.project.profiles[ANN].fields["Home"] == {"Garden": "theirs"}

    async def test_a_forgotten_person_is_dropped_and_counted_and_the_rest_written(self, rig: IterableRig, bench: Bench) -> None:
        rig.project.forget(ANN)
        await bench.give(bench.write(ANN, {"name": "Ann"}), bench.write(BOB, {"name": "Bob"}, B))
        assert await rig.held() == {BOB: {"name": "Bob"}}
        assert bench.dead == []
        assert metrics.WRITTEN.labels(bench.name, "people", "suppressed")._value.get() == 1

    async def test_a_refused_address_is_a_dead_letter_without_the_address_in_its_reason(self, rig: IterableRig, bench: Bench) -> None:
        await bench.give(bench.write("no-address", {"name": "X"}), bench.write(BOB, {"name": "Bob"}, B))
        assert await rig.held() == {BOB: {"name": "Bob"}}
        [letter] = bench.dead
        assert letter.field == "email"
        assert "no-address" not in letter.reason
        assert not letter.retryable

    async def test_a_value_too_long_is_a_dead_letter_of_its_user(self, rig: IterableRig, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "x" * 40_000}), bench.write(BOB, {"name": "Bob"}, B))
        assert list(await rig.held()) == [BOB]
        assert [letter.field for letter in bench.dead] == ["dataFields"]

    async def test_a_type_mismatch_names_the_field(self, rig: IterableRig, bench: Bench) -> None:
        await bench.give(bench.write(CAT, {"name": "Cat", "score": 1}, B))
        await bench.give(bench.write(ANN, {"name": "Ann", "score": "a lot"}))
        assert [letter.field for letter in bench.dead] == ["dataFields.score"]

    async def test_the_project_says_what_its_fields_take(self, rig: IterableRig, bench: Bench) -> None:
        values = {"name": "Ann", "score": 1, "part": 1.5, "seen": "2026-01-02T03:04:05.000Z", "on": True, "home": {"city": "x"}}
        await bench.give(bench.write(CAT, values, B))
        target = bench.target
        assert isinstance(target, Describing)
        takes = await target.describe("users")
        assert takes["dataFields.seen"] == Takes(classes=frozenset({"date as text"}))
        other = {"name": 1, "score": "a lot", "part": "1.5", "seen": "2020-04-13 14:04:09.000", "on": "yes", "home": "x"}
        for name, value in values.items():
            assert takes[f"dataFields.{name}"].refuses(value) is None
            assert takes[f"dataFields.{name}"].refuses(other[name]) is not None
            await bench.give(bench.write(ANN, {name: other[name]}))
            assert [letter.field for letter in bench.dead] == [f"dataFields.{name}"], "as Iterable itself says"
            bench.dead.clear()
            await bench.give(bench.write(ANN, {name: value}))
            assert bench.dead == []

    async def test_an_address_inside_data_fields_is_not_sent(self, rig: IterableRig, bench: Bench) -> None:
        write = bench.write(ANN, {"name": "Ann"})
        await bench.give(replace(write, body={"email": ANN, "dataFields": {"name": "Ann", "email": BOB, "userId": "u1"}}))
        assert await rig.held() == {ANN: {"name": "Ann"}}
        assert rig.project.profiles[ANN].user_id is None

    @pytest.mark.parametrize("fault", ["cut-body", "text-429", "500-json", "reset-before", "reset-after-commit"])
    async def test_a_passing_fault_of_the_wire_loses_nothing(self, rig: IterableRig, bench: Bench, fault: str) -> None:
        await bench.give(bench.write(CAT, {"name": "Cat"}, B))
        rig.faults.arm(fault, times=2)
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        assert (await rig.held())[ANN] == {"name": "Ann"}
        assert bench.dead == []
        assert rig.faults.armed == {}

    async def test_retry_after_is_waited_for(self, rig: IterableRig, bench: Bench) -> None:
        await bench.give(bench.write(CAT, {"name": "Cat"}, B))
        bench.slept.clear()
        rig.faults.arm("json-429", variant="retry-after")
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        assert sum(bench.slept) == 1.0

    async def test_what_differs_is_read_back_by_address(self, rig: IterableRig, bench: Bench) -> None:
        target = rig.target("marketing", "one")
        assert isinstance(target, Comparing) and not isinstance(target, Listing)
        names = {f"p{n}@example.com": {"name": f"N{n}", "city": "Rome", "seen": "2026-01-02T03:04:05+00:00"} for n in range(6)}
        bodies = {key: rig.body(key, fields) for key, fields in names.items()}
        await bench.give(*[bench.write(key, fields, f"acme/Contact/{key}") for key, fields in names.items()])
        rig.project.settle()
        profiles = [rig.project.profiles[key] for key in bodies]
        profiles[0].fields |= {"theirs": 1, "seen": "2026-01-02 03:04:05 +00:00"}
        assert await target.differing("users", bodies) == {}, "what others keep, and a time in Iterable's form, are no difference"
        profiles[1].fields["name"] = "Other"
        profiles[2].fields["Home"] = {"Garden": "theirs"}
        profiles[3].fields["deletedAtSource"] = True
        profiles[4].fields["seen"] = "2026-01-02 03:04:06 +00:00"
        del rig.project.profiles["p5@example.com"]
        kinds = ["changed", "changed", "deleted", "changed", "missing"]
        assert await target.differing("users", bodies) == dict(zip(list(bodies)[1:], kinds, strict=True))
        await target.close()

    async def test_an_html_404_pauses_because_the_address_is_wrong(self, rig: IterableRig, bench: Bench) -> None:
        rig.faults.arm("html-404")
        with pytest.raises(PausedError, match="base_url"):
            await bench.target.probe()

    async def test_a_delete_the_project_takes_its_time_for_is_done(self, rig: IterableRig, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann"}), bench.write(BOB, {"name": "Bob"}, B))
        await bench.give(bench.write(ANN, None, on_delete="delete"))
        await bench.give(bench.write(ANN, None, on_delete="delete", always=True))
        assert await rig.held() == {BOB: {"name": "Bob"}}

    async def test_a_mark_leaves_the_profile_with_a_flag_that_a_return_removes(self, rig: IterableRig, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann"}, on_delete="mark"))
        await bench.give(bench.write(ANN, None, on_delete="mark"))
        assert rig.project.profiles[ANN].fields == {"name": "Ann", "deletedAtSource": True}
        await bench.give(bench.write(ANN, {"name": "Ann"}, on_delete="mark"))
        assert rig.project.profiles[ANN].fields == {"name": "Ann"}

    async def test_a_map_that_writes_beside_data_fields_is_refused(self, bench: Bench) -> None:
        with pytest.raises(PausedError, match="FirstName"):
            await bench.target.start({"users": {"email": "text", "FirstName": "text"}})

    async def test_the_process_keeps_to_its_share_of_the_rate(self, rig: IterableRig, monkeypatch: pytest.MonkeyPatch) -> None:
        options = {"type": "iterable", "api_key": rig.key, "base_url": rig.sandbox.url, "requests_per_second": 40}
        given = TargetOptions.model_validate(options)
        monkeypatch.setattr(rig, "target", lambda name, installation: make_target(name, given, installation))
        bench = Bench(rig)
        bench.partition.part = 0.25
        began = time.monotonic()
        for n in range(3):
            await bench.give(bench.write(ANN, {"name": f"n{n}"}))
        assert time.monotonic() - began >= 0.2, "three calls at 10 a second begin at 0, 0.1 and 0.2 s"
        await bench.target.close()

    async def test_the_key_is_nowhere_to_be_read(self, rig: IterableRig, bench: Bench) -> None:
        rig.faults.arm("revoke")
        with pytest.raises(PausedError) as caught:
            await bench.target.probe()
        assert rig.key not in f"{caught.value!r} {bench.target!r} {vars(bench.target)}"


async def test_a_confirmed_delete_is_not_asked_for_again_by_a_snapshot() -> None:
    async with Sandbox(0) as sandbox:
        bench = Bench(IterableRig(sandbox))
        await bench.give(bench.write(ANN, {"name": "Ann"}, on_delete="mark"))
        await bench.give(bench.write(ANN, None, on_delete="mark"))
        before = len(sandbox.state.log)
        await bench.give(bench.write(ANN, None, on_delete="mark", always=True), bulk=True)
        assert len(sandbox.state.log) == before
        await bench.give(bench.write(ANN, {"name": "Ann"}, always=True), bulk=True)
        assert len(sandbox.state.log) > before
