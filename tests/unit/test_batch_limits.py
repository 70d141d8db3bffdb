"""Nothing that goes over a wire holds more than its receiver takes, and nothing is left out: none, one, the limit, one more, too large."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.guard import Guard
from agents.outbound import Answer as Reply
from agents.rules.delivery import Delivered
from agents.targets import iterable
from agents.writer import Item, Key, Writer
from models.errors import PermanentError
from models.flow import Salesforce
from streams.salesforce.auth import Login
from streams.salesforce.rest import IDS_PER_CALL, Answer, Rest
from tests.support.effects import effect
from tests.support.flows import AUTH, PEOPLE, Shapes, flow
from tests.support.pipeline import SETTINGS
from tests.support.rules_targets import Users

USERS, BYTES = 1000, 3_500_000


class Wire(Users):
    """Notes what goes over it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    async def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
        self.sent.append(body or b"")
        return await super().request(method, path, body)


def target() -> Any:
    found: Any = iterable.Target("marketing", iterable.IterableOptions(api_key="k"), "t")
    found._http = Wire()
    return found


def batches(sizes: Sequence[int]) -> list[list[int]]:
    """Places of users of so many bytes, by call."""
    marketing = target()
    writer = Writer("marketing", marketing, flow(people=PEOPLE), SETTINGS, Shapes({}), Guard("write", "marketing"))
    key: Any = Key(None, Delivered.decode(None))
    items = [Item(effect("users", str(n), {"email": str(n)}), key, key, key, size) for n, size in enumerate(sizes)]
    return [[int(item.effect.key) for item in batch] for batch in writer._batches(items)]


@pytest.mark.parametrize(
    ("count", "calls"), [(0, []), (1, [1]), (USERS - 1, [999]), (USERS, [1000]), (USERS + 1, [1000, 1]), (10_001, [1000] * 10 + [1])]
)
def test_users_of_a_call(count: int, calls: list[int]) -> None:
    found = batches([300] * count)
    assert [len(batch) for batch in found] == calls
    assert [place for batch in found for place in batch] == list(range(count))


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([BYTES], [[0]]),
        ([BYTES - 1, 1], [[0, 1]]),
        ([BYTES, 1], [[0], [1]]),
        ([1, BYTES], [[0], [1]]),
        ([1, BYTES + 1, 1], [[0], [1], [2]]),
        ([BYTES // 2] * 4, [[0, 1], [2, 3]]),
    ],
)
def test_bytes_of_a_call(sizes: list[int], calls: list[list[int]]) -> None:
    assert batches(sizes) == calls


@given(st.lists(st.integers(1, BYTES + 5), max_size=40))
def test_calls_keep_order_and_both_limits_and_none_is_smaller_than_need_be(sizes: list[int]) -> None:
    found = batches(sizes)
    assert [place for batch in found for place in batch] == list(range(len(sizes)))
    for batch in found:
        assert len(batch) == 1 or sum(sizes[place] for place in batch) <= BYTES
    for batch, after in pairwise(found):
        assert sum(sizes[place] for place in [*batch, after[0]]) > BYTES


@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
async def test_four_megabytes_pass_and_one_byte_more_is_refused_before_it_is_sent(more: int, fits: bool) -> None:
    marketing = target()

    def of(length: int) -> Any:
        return effect("users", "a@example.org", {"email": "a@example.org", "dataFields": {"note": "x" * length}})

    await marketing.write([of(0)])
    frame = len(marketing._http.sent[0])
    try:
        await marketing.write([of(iterable.LARGEST - frame + more)])
        assert fits and len(marketing._http.sent[1]) == iterable.LARGEST + more
    except PermanentError as error:
        assert not fits and "more than Iterable takes" in error.reason
        assert len(marketing._http.sent) == 1


@pytest.mark.parametrize(
    ("count", "queries"), [(0, []), (1, [1]), (IDS_PER_CALL, [200]), (IDS_PER_CALL + 1, [200, 1]), (401, [200, 200, 1])]
)
async def test_ids_of_a_query(count: int, queries: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    config = Salesforce.model_validate({"type": "salesforce", "auth": AUTH})
    rest = Rest("acme", config, Login("acme", config))
    asked: list[str] = []

    async def query(soql: str, purpose: str, *, deleted: bool) -> Answer:
        asked.append(soql)
        return Answer([{"Id": id} for id in soql.partition("IN (")[2].rstrip(")").replace("'", "").split(",")], 0, 5)

    monkeypatch.setattr(rest, "query", query)
    ids = [f"003Qx00000{n:05d}IAA" for n in range(count)]
    answer = await rest.by_ids("Contact", ["Id", *(f"A_rather_long_name_of_a_field_{n}__c" for n in range(40))], ids, "fetch")
    assert [soql.count("'") // 2 for soql in asked] == queries
    assert [row["Id"] for row in answer.rows] == ids
    assert all(len(orjson.dumps(soql)) < 16_384 for soql in asked), "what an address may have"
