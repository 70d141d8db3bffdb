"""Maps that follow the org: what `fields: all` gives, what becomes of a field that is gone or of another type, and what is read anew."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.maps import Maps, MapsError, load_maps
from agents.org_fields import followed, mended, shown_fields
from agents.rules.merge import RecordState
from agents.rules.versions import ROW
from agents.tables import RECORDS, records_key
from models.envelope import Reason
from models.errors import PermanentError
from models.flow import Route
from streams.map_versions import MapText, MapVersion, OrgFields, parse
from streams.topics import Topics
from tests.support.flows import TARGETS, flow
from tests.support.memory import MemoryRecord
from tests.support.pipeline import Pipeline

ID = "003Qx00000Ke4RtIAJ"
SOURCE = "acme/Contact"
ALL: dict[str, Any] = {"from": [SOURCE], "to": "warehouse", "map": "m.yaml", "fields": "all", "quality": []}
TEXT = "Email: mail\nOwner.Email: owner\n"
TOLD = {"Score__c": "number", "LeadSource": "text", "Email": "text"}


def described(*fields: tuple[str, str], **more: dict[str, Any]) -> dict[str, Any]:
    return {"fields": [{"name": name, "type": kind} | more.get(name, {}) for name, kind in fields]}


def route(**more: Any) -> Route:
    return Route.model_validate(ALL | more)


def loaded(org: dict[str, OrgFields], text: str = TEXT, **more: Any) -> Maps:
    return load_maps(flow(whole=ALL | more), TARGETS, {"whole": MapVersion("whole", 3, replace(MapText.of("m.yaml", text), org=org))})


EVERY = described(
    ("Id", "id"), ("IsDeleted", "boolean"), ("SystemModstamp", "datetime"), ("BillingAddress", "address"), ("BillingCity", "string"),
    ("Photo", "base64"), ("Size__c", "int"), ("Total__c", "currency"), ("LastActivityDate", "date"), Total__c={"calculated": True},
)  # fmt: skip


def test_all_fields_are_those_that_a_map_can_take_and_of_what_events_do_not_carry_those_that_rows_bring() -> None:
    events = {"Id": "text", "BillingCity": "text", "Size__c": "integer"}
    assert shown_fields(EVERY, query=False) == events
    assert shown_fields(EVERY, query=True) == events | {"Total__c": "number", "LastActivityDate": "date"}
    assert shown_fields({}, query=True) == {}


def test_a_field_that_the_org_loses_stays_and_is_gone_and_one_of_another_type_is_not_taken_any_more_even_later() -> None:
    first = followed(route(), OrgFields(), described(("A__c", "string"), ("B__c", "double")), frozenset())
    assert first == OrgFields({"A__c": "text", "B__c": "number"})
    lost = followed(route(), first, described(("B__c", "double"), ("C__c", "date")), frozenset({"Owner.X__c"}))
    assert lost == OrgFields({"A__c": "text", "B__c": "number", "C__c": "date"}, ("A__c", "Owner.X__c"))
    other = followed(route(), first, described(("A__c", "picklist"), ("B__c", "string")), frozenset())
    assert other.added == {"A__c": "text", "B__c": ""}
    assert followed(route(), other, described(("A__c", "string"), ("B__c", "string")), frozenset()).added["B__c"] == ""
    assert followed(route(fields=None), first, described(("B__c", "double")), frozenset({"Level__c"})) == OrgFields({}, ("Level__c",))


kinds = st.sampled_from(("string", "double", "int", "boolean", "date", "address", "email"))


@given(st.lists(st.dictionaries(st.sampled_from(["A__c", "B__c", "C__c"]), kinds), max_size=6))
def test_whatever_the_org_does_a_column_keeps_its_type_and_looking_twice_changes_nothing(course: list[dict[str, str]]) -> None:
    held, types = OrgFields(), dict[str, str]()
    for org in course:
        now = described(*org.items())
        held = followed(route(), held, now, frozenset())
        assert followed(route(), held, now, frozenset()) == held
        for name, kind in held.added.items():
            assert not kind or types.setdefault(name, kind) == kind
        assert set(held.gone) == held.added.keys() - org.keys()


def test_a_line_of_the_map_comes_before_what_all_fields_give() -> None:
    maps = loaded({SOURCE: OrgFields({**TOLD, "mail": "text"})})
    [way] = maps.ways(SOURCE)
    assert maps.columns("warehouse") == {"m": {"mail": "text", "owner": "text", "Score__c": "number", "LeadSource": "text"}}
    assert way.fields == {"Email", "Owner.Email", "Score__c", "LeadSource"}
    assert way.map.apply({"Email": "a@x", "Score__c": "1,200", "LeadSource": "Web"}) == {
        "mail": "a@x",
        "Score__c": 1200,
        "LeadSource": "Web",
    }
    lines = loaded({SOURCE: OrgFields(TOLD)}, text=TEXT + "LeadSource: origin\n")
    assert set(lines.columns("warehouse")["m"]) == {"mail", "owner", "origin", "Score__c"}
    assert set(loaded({SOURCE: OrgFields(TOLD)}, fields=None).columns("warehouse")["m"]) == {"mail", "owner"}


def test_of_two_types_of_one_column_the_first_stands_and_the_other_field_is_left_out() -> None:
    both = {"from": [SOURCE, "acme/Lead"], "fields": "all"}
    org = {SOURCE: OrgFields({"Score__c": "number"}), "acme/Lead": OrgFields({"Score__c": "text", "Status": "text"})}
    maps = loaded(org, text="Email: mail\n", **both)
    assert maps.columns("warehouse")["m"] == {"mail": "text", "Score__c": "number", "Status": "text"}
    assert "Score__c" not in maps.fields("acme/Lead")
    assert "Status" in maps.fields("acme/Lead") and "Status" not in maps.fields(SOURCE)


def test_where_records_are_named_by_mail_the_fields_stand_below_data_fields() -> None:
    maps = loaded({SOURCE: OrgFields(TOLD)}, text="Email: email\n", to="marketing")
    [way] = maps.ways(SOURCE)
    assert way.map.apply({"Email": "a@x", "LeadSource": "Web"}) == {"email": "a@x", "dataFields": {"LeadSource": "Web"}}


def test_what_is_gone_is_not_asked_for_and_still_followed_and_the_look_at_rights_asks_for_what_lines_name() -> None:
    before, after = loaded({SOURCE: OrgFields(TOLD)}), loaded({SOURCE: OrgFields(TOLD, ("Email", "Score__c", "Owner.Email"))})
    plan, was = after.plan(SOURCE), before.plan(SOURCE)
    assert plan is not None and was is not None
    assert plan.select == ("Id", "IsDeleted", "SystemModstamp", "LeadSource")
    assert plan.needed == {"LeadSource"} and plan.followed >= {"Email", "Score__c", "Owner.Email"}
    assert after.wanted(SOURCE) == (*plan.select, "Email", "Owner.Email"), "nobody named Score__c"
    assert after.read(SOURCE) == before.read(SOURCE)


async def test_a_record_without_a_field_that_is_gone_is_whole_and_one_that_had_it_keeps_it() -> None:
    org = {SOURCE: OrgFields({}, ("Title",))}
    maps = loaded(org, text="Email: mail\nTitle: title\n", fields=None)
    p = Pipeline(flow(whole=ALL), maps)
    [made] = await p.feed(p.change("Contact", ID, "CREATE", 10, 1000, {"Email": "a@x"}))
    assert made.body == {"mail": "a@x"}, "not even null: of the field nothing is known"
    p = Pipeline(flow(whole=ALL), loaded({}, text="Email: mail\nTitle: title\n", fields=None))
    await p.feed(p.change("Contact", ID, "CREATE", 10, 1000, {"Email": "a@x", "Title": "CEO"}))
    later = Pipeline(flow(whole=ALL), maps)
    later.partition, later.offsets = p.partition, p.offsets
    [row] = await later.feed(p.row("Contact", ID, 20, 1010, {"Email": "b@x"}))
    assert row.body == {"mail": "b@x", "title": "CEO"}
    assert (later.dead, later.fetches) == ([], [])


class Behind:
    """A worker's maps, before it has read the topic and after."""

    def __init__(self, now: Maps, later: Maps) -> None:
        self.now, self.later, self.asked = now, later, 0

    async def catch_up(self) -> None:
        self.now, self.asked = self.later, self.asked + 1


async def test_a_worker_that_is_behind_catches_up_before_it_takes_rows_that_fill_a_new_field() -> None:
    text, more = "Email: mail\n", OrgFields({"Score__c": "number"})
    maps = Behind(loaded({}, text=text), loaded({SOURCE: more}, text=text))
    p = Pipeline(flow(whole=ALL), maps)
    await p.feed(p.row("Contact", ID, 10, 1000, {"Email": "a@x"}))
    plan = maps.later.plan(SOURCE)
    assert plan is not None
    row = p.row("Contact", ID, 20, 1000, {"Score__c": 5}, bulk=True, plan=plan.print, reason=Reason.POLL)
    [write] = await p.feed(row)
    assert write.body == {"mail": "a@x", "Score__c": 5}
    assert p.fetches == [], "and nothing else of the record is read"
    state = RecordState.decode(p.partition.store(RECORDS).get_many([records_key(SOURCE, ID)])[0], ID)
    assert (state.base, list(state.exceptions)) == ((ROW, 1, 10, 1000), ["Score__c"]), "nor kept twice"
    same = [p.row("Contact", ID, 30, 1000, {"Score__c": 5}, bulk=True, plan="another", reason=Reason.POLL) for _ in range(2)]
    assert await p.feed(*same) == [], "what changes nothing is told to nobody"
    assert maps.asked == 2, "once for each plan"


@pytest.mark.parametrize("plan", ["filling", None])
async def test_a_new_field_that_is_empty_everywhere_is_no_swarm(plan: str | None) -> None:
    gated = ALL | {"gates": {"null": 2}}
    maps = load_maps(flow(whole=gated), TARGETS, {"whole": MapVersion("whole", 1, MapText.of("m.yaml", "Email: mail\nTitle: title\n"))})
    p, ids = Pipeline(flow(whole=gated), maps), [f"003Qx00000Ke4R{n}IAJ" for n in range(4)]
    for id in ids:
        await p.feed(
            p.change("Contact", id, "UPDATE", 10, 1000, {"Email": "a@x"}), p.row("Contact", id, 20, 1000, {"Email": "a@x", "Title": "x"})
        )
    rows = [p.row("Contact", id, 30, 1010, {"Title": None}, bulk=True, plan=plan, reason=Reason.POLL) for id in ids]
    written = await p.feed(*rows)
    assert (len(written), any("pauses" in topic for topic in p.topics)) == ((4, False) if plan else (0, True))


def test_a_version_is_kept_with_what_it_follows_and_a_changed_file_takes_it_over() -> None:
    held = MapVersion("whole", 3, MapText("m.yaml", TEXT, "h1", {SOURCE: OrgFields(TOLD, ("Email",))}), ("h0",))
    output = held.output(Topics("t"))
    [read] = parse([MemoryRecord("maps", 0, output.key, output.value, ())]).values()
    assert (read.map, read.was) == (held.map, held.was)
    assert held.next(MapText("m.yaml", "x", "h2")).map.org == held.map.org
    assert held.next(MapText("m.yaml", TEXT, "h1", {})).was == ("h0",), "the file was not changed"


@pytest.mark.parametrize("source", ["shop", "acme/Paid__e"])
def test_all_fields_are_those_of_an_sobject(source: str) -> None:
    with pytest.raises(MapsError, match="`fields: all` is for sObjects"):
        load_maps(flow(whole=ALL | {"from": [source], "map": "maps/order.yaml"}), TARGETS)


@pytest.mark.parametrize(("field", "changes", "asked"), [("Level__c", True, 2), ("Level__c", False, 1), (None, True, 1)])
async def test_a_call_that_is_refused_a_field_is_made_once_more_where_the_maps_go_with_the_org_then(
    field: str | None, changes: bool, asked: int
) -> None:
    maps = Behind(loaded({}), loaded({SOURCE: OrgFields({}, ("Level__c",))}))
    calls = list[Maps]()

    async def call() -> str:
        calls.append(maps.now)
        if maps.now is not maps.later:
            raise PermanentError("No such column", field=field)
        return "rows"

    async def mend() -> None:
        if changes:
            await maps.catch_up()

    made = mended(call, maps, mend)
    if asked == 2:
        assert await made() == "rows"
    else:
        with pytest.raises(PermanentError):
            await made()
    assert len(calls) == asked
