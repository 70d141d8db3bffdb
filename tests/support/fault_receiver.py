"""The receiver of the fault suite, a process of its own: `python -m tests.support.fault_receiver POINTS`, the points as JSON.

It is what `headrace receive --no-supervise` starts, with the fault points of tests/support/fault_points.py put in.
"""

import json
import sys

from deploy.processes import receive
from tests.support import fault_points

if __name__ == "__main__":
    fault_points.arm(json.loads(sys.argv[1]))
    receive(None)
