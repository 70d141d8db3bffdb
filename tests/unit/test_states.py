"""States of the table `records`: both formats on disk, what cannot be read, and the decoded ones that are kept."""

import orjson
import pytest

from agents.rules.identity import Keys
from agents.rules.merge import RecordState
from agents.states import States
from models.errors import FatalError

ID = "003Qx00000Ke4RtIAJ"


def test_a_state_of_the_first_format_is_read_as_it_was_meant() -> None:
    """As the first version wrote it, with every field."""
    old = {
        "f": 1, "v": {"Id": ID, "IsDeleted": False, "Email": "a@x"}, "b": [1, 1, 10, 1000], "x": {"Email": [0, 1, 12, 1002]}, "d": True,
        "D": [0, 1, 13, 1003], "o": [7, 3], "h": [1, 13], "k": {"people": ["a@x", {"b@x": ["bulk", 2]}]}, "m": [13, 1003000, 1004000],
    }  # fmt: skip
    state = RecordState.decode(orjson.dumps(old), ID)
    assert state == RecordState(
        {"Id": ID, "IsDeleted": False, "Email": "a@x"}, (1, 1, 10, 1000), {"Email": (0, 1, 12, 1002)}, True, (0, 1, 13, 1003), 7, 3,
        (1, 13), {"people": Keys("a@x", {"b@x": ("bulk", 2)})}, 13, 1003000, 1004000,
    )  # fmt: skip
    assert RecordState.decode(state.encode(), ID) == state
    fresh = RecordState.decode(orjson.dumps(old | {"b": None, "x": {}, "D": None, "k": {}, "m": [None, None, None]}), ID)
    assert RecordState.decode(fresh.encode(), ID) == fresh


_BROKEN = [b"", b"{", b"[]", b"5", b"null", b"{}", b'{"v":{}}', b'{"f":1}', b'{"f":3,"v":{}}', b'{"f":2,"v":[]}', b'{"f":2,"b":[1]}',
           b'{"f":2,"l":"x"}', b"\xff", b'{"f":2,' + b"[" * 5000, b'{"f":2,"v":' + b"[" * 5000]  # fmt: skip


@pytest.mark.parametrize("raw", _BROKEN)
def test_a_state_that_cannot_be_read_is_never_guessed(raw: bytes) -> None:
    with pytest.raises(FatalError):
        RecordState.decode(raw, ID)


def test_states_are_kept_by_their_bytes_for_one_taker_and_within_bounds() -> None:
    states = States(most_bytes=2000)
    given = [states.put(RecordState({"Id": str(n), "Text": "x" * 300})) for n in range(20)]
    assert sum(map(len, states._held)) == states._bytes <= 2000
    assert given[-1] in states._held
    assert given[0] not in states._held, "the oldest goes first"
    taken = states.pop(given[-1], "19")
    taken.values["Text"] = "changed by its taker"
    assert states.pop(given[-1], "19").values["Text"] == "x" * 300
    for raw in given:
        states.pop(raw, "")
    assert (states._bytes, states._held) == (0, {})
