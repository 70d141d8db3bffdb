"""A record of which people refused to tell a route, kept in the record's state as long as it is as it was then. Pure.

The target keeps what it has of it, on purpose: for `headrace verify` that is no difference. A record that changed since is as any other.
"""

import hashlib

import msgspec

from agents.rules.identity import Keys
from agents.rules.merge import RecordState
from agents.rules.ways import Way

_REFUSED = "refused|"
"""Before a route's name, in a state's keys. No route's name holds the sign."""


def refuse(state: RecordState, way: Way) -> None:
    """Remember that the route was not told of it as it is now."""
    state.keys[_REFUSED + way.route] = Keys(_print(state, way))


def tell(state: RecordState, way: Way) -> None:
    """It is told after all."""
    state.keys.pop(_REFUSED + way.route, None)


def is_refused(state: RecordState, way: Way) -> bool:
    """It was refused, and is still as it was then."""
    held = state.keys.get(_REFUSED + way.route)
    return held is not None and held.last == _print(state, way)


def _print(state: RecordState, way: Way) -> str:
    """Tells apart what the route would be told of it."""
    if state.deleted:
        return "deleted"
    values = [(path, state.values.get(path)) for path in sorted(way.fields)]
    return hashlib.blake2b(msgspec.json.encode(values), digest_size=8).hexdigest()
