"""A map is changed while a snapshot runs, which goes on reading the columns of before: no record ends without the new field."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.maps import Maps, load_maps
from models.envelope import Reason
from streams.map_versions import MapText, MapVersion
from tests.support.flows import CONTACTS, Facts, flow
from tests.support.pipeline import Pipeline

IDS = tuple(f"003Qx00000000{n:02d}IAA" for n in range(12))
OLD = "Id: id\nEmail: email\n"
NEW = f"{OLD}Title: title\nAccount.Name: company\n"


class Switching:
    """Maps in use, of which there may be a later version."""

    def __init__(self, fetch: str) -> None:
        self.flow = flow(route=CONTACTS | {"map": "maps/x.yaml", "quality": [], "fetch": fetch})
        self.now = self.maps(1, OLD)

    def maps(self, number: int, text: str) -> Maps:
        return load_maps(self.flow, {"warehouse": Facts()}, {"route": MapVersion("route", number, MapText.of("x.yaml", text))})

    async def catch_up(self) -> None:
        """Nothing else is in use."""


def of(number: int) -> dict[str, Any]:
    """A record as the org has it."""
    return {"Email": f"{number}@example.org", "Title": f"t{number}", "Account": {"Name": "Example"}}


@pytest.mark.parametrize("fetch", ["event", "query"])
@given(at=st.integers(0, len(IDS)), known=st.booleans())
async def test_a_row_of_before_is_read_again_and_ends_whole(fetch: str, at: int, known: bool) -> None:
    """Rows reach a worker that has the later map from `at` on; `known`: the records stood in the target before."""
    maps = Switching(fetch)
    p: Any = Pipeline(maps.flow, maps)
    held: dict[str, Any] = {}

    async def feed(*records: Any) -> None:
        held.update({write.source[-18:]: write.body for write in await p.feed(*records)})

    if known:
        await feed(*(p.row("Contact", id, 5, 500, {"Email": f"{n}@example.org"}) for n, id in enumerate(IDS)))
    rows = [
        p.row("Contact", id, 10, 1000, {"Email": f"{n}@example.org"}, reason=Reason.SNAPSHOT, run="s", bulk=True)
        for n, id in enumerate(IDS)
    ]
    for record in rows[:at]:
        await feed(record)
    maps.now = maps.maps(2, NEW)
    for record in rows[at:]:
        await feed(record)
    late = IDS[at:]
    assert {request["id"] for request, _ in p.fetches} == set(late), "those and no others are read again"
    assert all(held[id] == {"id": id, "email": f"{n}@example.org"} for n, id in enumerate(IDS) if id in held), "none is half written"
    plan = maps.now.plan("acme/Contact")
    assert plan is not None
    for n, id in enumerate(IDS):
        if id in late:
            await feed(p.row("Contact", id, 10, 1000, of(n), plan=plan.print))
    assert {id: held[id] for id in late} == {
        id: {"id": id, "email": f"{n}@example.org", "title": f"t{n}", "company": "Example"} for n, id in enumerate(IDS) if id in late
    }
    assert p.dead == []


async def test_children_of_a_parent_that_were_read_by_the_columns_of_before_are_read_again() -> None:
    maps = Switching("event")
    maps.now = maps.maps(2, NEW)
    p: Any = Pipeline(maps.flow, maps)
    assert await p.feed(p.row("Contact", IDS[0], 10, 1000, {"Email": "a@example.org"}, reason=Reason.PARENT)) == []
    assert ([request["id"] for request, _ in p.fetches], p.dead) == ([IDS[0]], []), "asked for, and no dead letter"
