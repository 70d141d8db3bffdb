"""Headrace's own processes in a soak: each has a clock that can be stepped, and workers a flow that can be changed one by one.

It starts them and nothing else; when is the business of run.py and faults.py.
"""

import contextlib
import os
import shutil
import struct
from pathlib import Path

from deploy.local.process import LocalServiceError
from deploy.rig import FLOW, Rig

CLOCK = Path(__file__).parent / "clock"
SILENCE = 10.0
"""Seconds of the flow's `silence`: a session that hears nothing is given up after so many, twice as many without an event."""
RETURNED = "acme/Case"
CASES = f"  cases: {{from: {RETURNED}, to: warehouse, map: case}}\n"
"""The route of the sObject that a rolling change of the flow takes away and brings back."""
STOP_SECONDS, READY_SECONDS = 25.0, 20.0


def own_flow(folder: Path) -> Path:
    """The demo's flow with a shorter silence and one sObject more, in a folder of the run; beside it `narrow.yaml` without that sObject."""
    copy = folder / "flow"
    shutil.copytree(FLOW.parent, copy)
    flow = copy / FLOW.name
    text = flow.read_text().replace("    type: salesforce\n", f"    type: salesforce\n    silence: {SILENCE:g}\n")
    narrow(flow).write_text(text)
    flow.write_text(f"{text}\n{CASES}")
    return flow


def narrow(flow: Path) -> Path:
    """The flow file with one sObject less."""
    return flow.with_name("narrow.yaml")


class Crew:
    """Starts processes by name ("worker-2" is a worker)."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._flows: dict[str, Path] = {}

    def start(self, name: str) -> None:
        """With its clock and its flow."""
        clock = self._clock(name)
        if not clock.exists():
            self.step(name, 0.0)
        more = {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(CLOCK), os.environ.get("PYTHONPATH")))),
            "HEADRACE_SOAK_CLOCK": str(clock),
            "HEADRACE_FLOW": str(self._flows.get(name, self._rig.flow)),
        }
        self._rig.run(name.partition("-")[0], name=name, environ=more)

    def stop(self, name: str) -> None:
        """SIGTERM, and what follows where that is not enough."""
        self._rig.processes[name].stop(STOP_SECONDS)

    def step(self, name: str, seconds: float) -> None:
        """Its clock is off by so much from now on, also after a restart."""
        with self._clock(name).open("r+b" if self._clock(name).exists() else "w+b") as file:
            file.write(struct.pack("d", seconds))

    def change_flow(self, name: str, flow: Path) -> None:
        """A new start with another flow; returns when it is ready, or is not for a while (something else is broken just now)."""
        self._flows[name] = flow
        self.stop(name)
        self.start(name)
        with contextlib.suppress(LocalServiceError):
            self._rig.wait_ready(name, READY_SECONDS)

    def _clock(self, name: str) -> Path:
        return self._rig.folder / f"{name}.clock"
