"""A route that emits what events tell and one that reads each row again give the same, for any map and any course of events."""

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.maps import load_maps
from models.write import Op
from streams.map_versions import MapText, MapVersion
from tests.support.flows import TARGETS, flow
from tests.support.memory import MemoryRecord
from tests.support.pipeline import Pipeline
from tests.support.rules_world import run

ID, BOSSES = "003Qx00000Ke4RtIAJ", ("005Qx00000000001AA", "005Qx00000000002AA")
SOME = {
    "Email": (None, " A@Example.org ", "b@example.org"),
    "FirstName": (None, "Zoë", "Jan"),
    "LastName": ("Müller", "van der Berg"),
    "Title": (None, "CEO", " cto "),
    "Score__c": (None, 0, 1.5, 12),
    "Open__c": (False, True),
    "Boss__c": (None, *BOSSES),
}
"""What each field may hold."""
PATHS = (*SOME, "Name", "Boss__r.Email", "Boss__r.Alias")
TEXT = ("trim", "lowercase", "uppercase", {"truncate": 2})
values = st.fixed_dictionaries({name: st.sampled_from(held) for name, held in SOME.items()})


@st.composite
def lines(draw: st.DrawFn) -> dict[str, Any]:
    """A map of some paths, each to a place of its own, with any of the policies."""
    found: dict[str, Any] = {}
    for number, path in enumerate(draw(st.lists(st.sampled_from(PATHS), min_size=1, unique=True))):
        line: dict[str, Any] = {"to": draw(st.sampled_from((f"f{number}", f"in.f{number}", f"in.deep.f{number}")))}
        line["nulls"] = draw(st.sampled_from(("clear", "skip", "keep")))
        if path not in ("Score__c", "Open__c") and draw(st.booleans()):
            line["transform"] = draw(st.lists(st.sampled_from(TEXT), min_size=1, max_size=2))
        if draw(st.booleans()):
            line["default"] = "none"
        if draw(st.booleans()):
            line["or"] = draw(st.sampled_from(PATHS))
        found[path] = line
    return found


class Org:
    """One Contact as it is, told by events; rows are read when they are asked for, or later. Each route has state of its own."""

    def __init__(self, written: dict[str, Any], where: str | None) -> None:
        self.made = {fetch: _pipeline(written, where, fetch) for fetch in ("event", "query")}
        self.held: dict[str, Any] = {}
        self.deleted, self.position, self.second = False, 10, 1000

    def change(self, fresh: dict[str, Any], names: list[str], *, delete: bool) -> None:
        """What is drawn happens, as far as it can to a record in this state, and its event is processed."""
        self.position, self.second = self.position + 1, self.second + self.position % 3
        if not self.held or self.deleted:
            kind, names = "UNDELETE" if self.held else "CREATE", list(SOME)
            self.held, self.deleted = fresh | self.held, False
        elif delete:
            kind, names, self.deleted = "DELETE", [], True
        else:
            kind, self.held = "UPDATE", self.held | {name: fresh[name] for name in names}
        told = [name for name in names if kind == "UPDATE" or self.held[name] is not None]
        whole = {name: self.held[name] for name in told if name in ("FirstName", "LastName")}
        body = {name: self.held[name] for name in told if name not in whole} | ({"Name": whole} if whole else {})
        changed = [f"Name.{name}" if name in whole else name for name in told]
        for pipeline in self.made.values():
            _feed(pipeline, pipeline.change("Contact", ID, kind, self.position, self.second, body, changed=changed))

    def answer(self) -> bool:
        """The oldest request of each, by a row of now; whether there was one."""
        asking = [pipeline for pipeline in self.made.values() if pipeline.fetches]
        for pipeline in asking:
            _, headers = pipeline.fetches.pop(0)
            boss = self.held["Boss__c"]
            row = self.held | {"MiddleName": None, "Suffix": None, "IsDeleted": self.deleted}
            row["Name"] = " ".join(str(row[part]) for part in ("FirstName", "LastName") if row[part])
            row["Boss__r"] = None if boss is None else {"Email": f"{boss}@example.org", "Alias": boss[-4:]}
            told = {name: headers[name] for name in ("reason", "run", "route") if name in headers}
            _feed(pipeline, pipeline.row("Contact", ID, self.position, self.second, row, **told))
        return bool(asking)

    def stands(self, fetch: str) -> tuple[str, Any] | None:
        """Key and body that the target holds; None where it was told of nothing, or that nothing is to stand."""
        assert self.made[fetch].dead == []
        told = [write for _, write in self.made[fetch].writes]
        return (told[-1].key, told[-1].body) if told and told[-1].op is Op.WRITE else None


def _pipeline(written: dict[str, Any], where: str | None, fetch: str) -> Pipeline:
    route = {"from": ["acme/Contact"], "to": "warehouse", "map": "m.yaml", "fetch": fetch} | ({"where": where} if where else {})
    text = MapText.of("m.yaml", orjson.dumps({"version": 1, "fields": written}).decode())
    return Pipeline(made := flow(route=route), load_maps(made, TARGETS, {"route": MapVersion("route", 1, text)}))


def _feed(pipeline: Pipeline, record: MemoryRecord) -> None:
    run(pipeline.feed(record))


steps = st.tuples(
    values, st.lists(st.sampled_from(list(SOME)), min_size=1, unique=True), st.sampled_from(("change",) * 4 + ("delete", "answer"))
)


@given(lines(), st.sampled_from((None, "Score__c > 0", "Email != null")), st.lists(steps, min_size=1, max_size=9))
@settings(max_examples=60)
def test_a_route_by_event_and_one_by_query_end_with_the_same_record(
    written: dict[str, Any], where: str | None, course: list[tuple[dict[str, Any], list[str], str]]
) -> None:
    org = Org(written, where)
    for fresh, names, what in course:
        if what != "answer" or not org.answer():
            org.change(fresh, names, delete=what == "delete")
    while org.answer():
        pass
    assert org.stands("event") == org.stands("query")
