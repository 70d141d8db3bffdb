"""`where:` and `on_delete:`: every way to enter, to leave and to come back, in every order, ends as the table says."""

from itertools import product
from typing import Any

import pytest

from agents.rules.delivery import Delivered, apply
from agents.rules.writes import decode_write, encode_write, read_json
from models.write import OnDelete
from tests.support.flows import CONTACTS
from tests.support.memory import MemoryRecord
from tests.support.pipeline import Pipeline
from tests.unit.test_process import ID, ROW, pipeline

STEPS = ("in", "out", "moved", "deleted", "undeleted")
"""What happens to the record: it is (again) as the filter wants it, is not, has another key, is deleted, comes back from the bin."""
TABLE: dict[OnDelete, tuple[str, ...]] = {
    # what stands under a key that nobody speaks for any longer: after leaving or deletion, and after the record took another key
    "tombstone": ("marked", "marked"),
    "mark": ("marked", "marked"),
    "delete": ("absent", "absent"),
    "ignore": ("kept", "marked"),
}


def route(on_delete: OnDelete) -> dict[str, Any]:
    return CONTACTS | {"where": "Title != 'Secret'", "on_delete": on_delete, "key": "email"}


class Shelf:
    """A target that holds by key a body, and whether it is marked; told as the writer tells one."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[Any, bool]] = {}
        self.states: dict[str, Delivered] = {}
        self.offset = 0

    def take(self, made: Pipeline, writes: list[Any]) -> None:
        for write in writes:
            self.offset += 1
            state = self.states.setdefault(write.key, Delivered.decode(None))
            decision = apply(state, decode_write(encode_write(write)), "live", self.offset)
            if not decision.call:
                continue
            if decision.body is not None:
                self.held[write.key] = (read_json(decision.body), False)
            elif write.on_delete == "delete":
                self.held.pop(write.key, None)
            elif write.key in self.held:
                self.held[write.key] = (self.held[write.key][0], True)
            state.wrote(decision.turn, decision.body)
        assert not made.dead


def event(p: Pipeline, step: str, number: int, mail: str) -> MemoryRecord:
    position, second = 100 + number, 2000 + number
    if step in ("in", "out", "moved"):
        row = ROW | {"Email": mail, "Title": "Secret" if step == "out" else f"t{number}"}
        return p.row("Contact", ID, position, second, row)
    whole = {name: value for name, value in ROW.items() if not isinstance(value, dict)} | {"Email": mail, "Title": f"t{number}"}
    return p.change("Contact", ID, "DELETE" if step == "deleted" else "UNDELETE", position, second, whole if step == "undeleted" else None)


@pytest.mark.parametrize("on_delete", TABLE)
async def test_every_order_of_entering_leaving_and_coming_back_ends_as_the_table_says(on_delete: OnDelete) -> None:
    for steps in (plan for length in range(1, 5) for plan in product(STEPS, repeat=length)):
        p, shelf = pipeline(r=route(on_delete)), Shelf()
        mail, number = "a@x.org", 0
        want: dict[str, tuple[str | None, str]] = {}  # by key its title, and how it stands
        at: str | None = None
        for number, step in enumerate(steps):
            mail = f"{number}@x.org" if step == "moved" else mail
            shelf.take(p, await p.feed(event(p, step, number, mail)))
            stands = step in ("in", "moved", "undeleted")
            if at is not None and (not stands or at != mail):
                title, _ = want.pop(at)
                after = TABLE[on_delete][1 if stands else 0]
                if after != "absent":
                    want[at] = (title, after)
            at = mail if stands else None
            if stands:
                want[mail] = (f"t{number}", "stands")
        found = {key: (body["title"], "marked" if marked else "stands") for key, (body, marked) in shelf.held.items()}
        assert found == {key: (title, "stands" if how == "kept" else how) for key, (title, how) in want.items()}, steps
