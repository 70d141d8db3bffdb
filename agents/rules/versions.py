"""Which of two values is the newer one: an event's by position, a row's by its stamp, one against the other with a tolerance. Pure.

Commit seconds are whole and SystemModstamp is taken before the commit, hence the tolerance. Too late a win heals itself: the newer event
still comes. (Without it 290 of 60,000 random scenarios ended wrong.)
"""

EVENT, ROW = 0, 1
TOLERANCE = 2
"""Seconds an event may be older than a row's stamp and still count as not older."""

Version = tuple[int, int, int, int]
"""(EVENT, epoch, position, commit second) or (ROW, epoch, began, SystemModstamp second)."""


def wins(new: Version, old: Version) -> bool:
    """Whether a value of version `new` replaces one of `old`; an equal version does."""
    if new[0] == old[0]:
        if new[0] == EVENT:
            return (new[1], new[2]) >= (old[1], old[2])
        return (new[1], new[3], new[2]) >= (old[1], old[3], old[2])
    event, row = (new, old) if new[0] == EVENT else (old, new)
    if event[1] != row[1]:
        event_wins = event[1] > row[1]
    elif event[2] <= row[2]:
        event_wins = False
    else:
        event_wins = event[3] >= row[3] - TOLERANCE
    return event_wins if event is new else not event_wins
