"""Python's cyclic collector, set for a process that handles chunks of records: by default it looks at all of them after each 700 objects.

A chunk's records, events and states are freed by their reference counts; looking for cycles among them took a fifth of the time.
"""

import gc

NEW_OBJECTS = 50_000


def collect_rarely() -> None:
    """Leave alone what is there now (modules, compiled maps); look for cycles after each `NEW_OBJECTS` new ones. Once, at the start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 20, 20)
