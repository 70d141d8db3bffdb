"""Where a channel begins, and what was read before by another way must neither win over it nor stay. Rules only: no I/O.

An sObject comes by a channel today and by another one, or by polling, tomorrow. Positions of two channels, or orgs, say nothing of each
other, so the epoch rises; and of another org all is read again, so that records which are not in this one go.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from models.change_event import FIRST_EPOCH
from streams.salesforce.cursors import Cursor
from streams.salesforce.incidents import Incident
from streams.salesforce.positions import Position, position_key


def left_behind(stored: Mapping[str, Position], connection: str, channels: Collection[str]) -> list[Position]:
    """Positions of the connection's channels that bring nothing any more: what they brought may come by one of `channels` now."""
    named = {position_key(connection, channel) for channel in channels}
    return [at for key, at in stored.items() if key.startswith(f"{connection}|") and key not in named]


def above(position: Position, left: Sequence[Position]) -> Position:
    """The stored position of a channel, in an epoch above those of the channels that were left behind."""
    return replace(position, epoch=max([position.epoch, *(at.epoch + 1 for at in left)]))


def first(
    key: str, position: Position, sources: Sequence[str], left: Sequence[Position], cursors: Mapping[str, Cursor]
) -> tuple[Position, list[Incident]]:
    """The first position of a channel (`key`), and an incident for each of its sources that came from another org before.

    Of a channel that was left behind nobody knows what it brought, so it may be all of them; cursors name their source.
    """
    if any(at.org != position.org for at in left):
        moved = list(sources)
    else:
        moved = [source for source in sources if source in cursors and cursors[source].org not in ("", position.org)]
    position = above(replace(position, epoch=FIRST_EPOCH + bool(moved)), left)
    name, why, now = f"{key}@{position.epoch}", f"the org is now another one, at {position.instance}", int(time.time() * 1000)
    return position, [Incident(f"{name}/{source}/org changed", source, "org changed", why, opened=now) for source in moved]
