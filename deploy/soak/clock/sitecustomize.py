"""Python reads this at its start where the folder is on PYTHONPATH: a process of the soak whose wall clock can be stepped from outside.

The file that HEADRACE_SOAK_CLOCK names holds one double, the seconds by which time.time() is off; it is shared memory, so that a step needs
no signal, which a process that only begins would die of. What the log says of time (datetime) stays right: restarts are judged by it.
"""

import mmap
import os
import struct
import time

if _name := os.environ.get("HEADRACE_SOAK_CLOCK"):
    with open(_name, "r+b") as _file:  # noqa: PTH123 - nothing is imported here that the process itself would not
        _shared, _real, _off = mmap.mmap(_file.fileno(), 8), time.time, struct.Struct("d").unpack_from
    time.time = lambda: _real() + _off(_shared)[0]
