"""Maps of a flow: what they tell readers and targets, and that every mistake is told with place and remedy, all at once."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.map_file import read_map
from agents.maps import MapsError, load_maps
from agents.targets import find_target
from tests.support.flows import CONTACTS, PEOPLE, TARGETS, flow, maps


def test_fields_are_what_all_routes_of_a_source_need() -> None:
    found = maps(contacts=CONTACTS, people=PEOPLE)
    contact = found.fields("acme/Contact")
    assert contact[:3] == ("Id", "IsDeleted", "SystemModstamp")
    assert {"Title", "Owner.Email", "OwnerId", "Account.Name", "AccountId"} <= set(contact)
    assert "Status" not in contact, "a Contact has none, a Lead has"
    assert not {field for field in found.fields("acme/Lead") if field.startswith("Account")}
    assert len(set(contact)) == len(contact)
    assert found.sources == ("acme/Contact", "acme/Lead")


def test_columns_have_types_where_they_are_known() -> None:
    plain = CONTACTS | {"map": "maps/iterable-user.yaml"}
    found = maps(contacts=CONTACTS, plain=plain)
    assert found.columns("warehouse")["person"]["accountExternalId"] == "text"
    assert found.columns("warehouse")["iterable-user"] == {"email": "text", "dataFields": "json"}
    assert found.columns("nowhere") == {}


def test_the_object_is_the_routes_then_the_targets_then_the_maps() -> None:
    found = maps(a=CONTACTS | {"object": "crew"}, b=CONTACTS, c=PEOPLE)
    assert [found.route(name).object for name in "abc"] == ["crew", "person", "users"]


def test_a_map_file_may_be_json_and_name_transforms(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"Email": "email", "Website": {"to": "site.domain", "transform": "domain"}}')
    found, problems = read_map(path)
    assert problems == []
    assert found is not None
    assert [(leaf.source, leaf.target) for leaf in found.leaves] == [("Email", ("email",)), ("Website", ("site", "domain"))]


BAD_MAPS = [
    ("", 1, "must hold at least one line"),
    ("- a", 1, "must hold at least one line"),
    ("a: [", 1, "not YAML"),
    ("a: b\nc: {to: d, transform: shout}", 2, "unknown transform shout"),
    ("a: b\nc: {too: d}", 2, "unknown option too"),
    ("a: 5", 1, "must be a path"),
    ("a: ''", 1, "must be a path"),
    ("a: b..c", 1, "must be a path"),
    ("a b: c", 1, "must be a path"),
    ("a: b\nc: b", 2, "written by a too"),
    ("a: b\nc: b.d", 2, "cannot hold fields"),
    ("a: b\na: c", 2, "a second time"),
    ("a: {to: x; DROP}", 1, "must be a path"),
]


@pytest.mark.parametrize(("text", "line", "message"), BAD_MAPS)
def test_a_mistake_in_a_map_file_has_line_and_remedy(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    _, problems = read_map(path)
    assert any(message in problem.message and problem.line == line and problem.remedy for problem in problems), problems


@given(st.text(max_size=60))
def test_no_text_breaks_the_reading_of_a_map(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, errors="replace")
    found, problems = read_map(path)
    assert found is not None or problems


UNIQUE = {"quality": ["required", "duplicates"]}
BAD_ROUTES: list[tuple[dict[str, Any], str, str]] = [
    ({"to": "nowhere"}, "to", "unknown target nowhere"),
    ({"map": "acount"}, "map", "no built-in map acount"),
    ({"map": "account"}, "map", "is for Account, not for acme/Contact"),
    ({"map": "maps/none.yaml"}, "map", "no such file"),
    ({"map": "maps\0.yaml"}, "map", "cannot be"),
    ({"where": "Email ="}, "where", "line 1, column 8"),
    ({"where": "MailingAddress != null"}, "map", "is a compound field"),
    ({"key": "emial"}, "key", "no field of the mapped body"),
    ({"key": "{email"}, "key", "template cannot be read"),
    ({"to": "marketing", "key": "title"}, "key", "names its records by email"),
    ({"to": "marketing", "map": "maps/world.yaml"}, "map", "never writes email"),
    ({"from": ["shop"]}, "map", "not for shop"),
    (UNIQUE | {"unique": "tilte"}, "unique", "never writes tilte"),
    (UNIQUE | {"unique": "title", "key": "title"}, "unique", "names its records by title"),
    (UNIQUE | {"unique": "email", "to": "marketing"}, "unique", "names its records by email"),
    (UNIQUE | {"unique": "title", "to": "marketing"}, "unique", "renames a record when its email changes"),
]


@pytest.mark.parametrize(("change", "part", "message"), BAD_ROUTES)
def test_a_mistake_in_a_route_names_its_place_and_a_remedy(change: dict[str, Any], part: str, message: str) -> None:
    with pytest.raises(MapsError) as caught:
        maps(bad=CONTACTS | change, good=CONTACTS | {"object": "other"})
    [problem] = caught.value.problems
    assert problem.place == ("routes", "bad", part)
    assert message in problem.message
    assert problem.remedy
    assert problem.message in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    routes = {f"r{n}": CONTACTS | change for n, (change, _, _) in enumerate(BAD_ROUTES)}
    with pytest.raises(MapsError) as caught:
        load_maps(flow(**routes), TARGETS)
    assert {problem.place[1] for problem in caught.value.problems} == set(routes)


def test_two_routes_to_one_object_must_agree_on_types(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("Id: id\nEmail: value\n")
    (tmp_path / "b.yaml").write_text("Id: id\nDoNotCall: value\n")
    base = {"from": ["acme/Contact"], "to": "warehouse", "object": "t"}
    made = flow(a=base | {"map": "a.yaml"}, b=base | {"map": "b.yaml"}).model_copy(update={"folder": str(tmp_path)})
    with pytest.raises(MapsError, match="value of warehouse is boolean here and text"):
        load_maps(made, TARGETS)


def test_names_that_a_target_cannot_have_are_told_at_their_lines(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(f"Id: id\nEmail: _turn\nFirstName: {'x' * 64}\n")
    (tmp_path / "u.yaml").write_text("Email: email\nPhone: phone\n")
    made = flow(a={"from": ["acme/Contact"], "to": "warehouse", "map": "m.yaml"}, b=PEOPLE | {"map": "u.yaml"})
    facts: dict[str, Any] = {"warehouse": find_target("postgres"), "marketing": find_target("iterable")}
    with pytest.raises(MapsError) as caught:
        load_maps(made.model_copy(update={"folder": str(tmp_path)}), facts)
    found = {(Path(problem.file or "").name, problem.line) for problem in caught.value.problems}
    assert found == {("m.yaml", 2), ("m.yaml", 3), ("u.yaml", 2)}
