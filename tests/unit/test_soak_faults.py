"""Doing the faults of a soak: everything the schedule can say can be done, what cannot be done is said, and a stop mends at once."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.local.process import LocalServiceError
from deploy.sandbox.client import SandboxError
from deploy.soak.crew import CASES, Crew, narrow, own_flow
from deploy.soak.faults import Faults
from deploy.soak.schedule import KINDS, Planned
from streams.flow_file import load_flow
from streams.publish import MAX_RECORD


class Rig:
    """Takes note of what is asked of it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.did: list[Any] = []
        self.error = error
        self.services = SimpleNamespace(kafka=self, postgres=self)

    def ask(self, method: str, path: str, body: Any = None, *, target: str = "salesforce") -> Any:
        self.did.append((target, method, path if body is None else body))
        if self.error:
            raise self.error
        return {"ids": ["003xx0000000001AAA"]}

    def kill(self, name: str = "server") -> None:
        self.did.append(("kill", name))
        if self.error:
            raise self.error

    def start(self, name: str = "server") -> None:
        self.did.append("start" if name == "server" else ("start", name))

    def step(self, name: str, seconds: float) -> None:
        self.did.append((name, seconds))

    def change_flow(self, name: str, flow: Path) -> None:
        self.did.append((name, flow.name))

    flow = Path("demo.yaml")


def planned(name: str, target: str, seconds: float = 0.0, variant: str = "") -> Planned:
    return Planned(1, name, target, 5.0, seconds, variant)


def faults(rig: Rig) -> tuple[Any, threading.Event]:
    stop = threading.Event()
    return Faults(rig, rig, stop), stop  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.name}-{kind.targets[0]}")
def test_every_kind_of_the_schedule_has_somebody_who_does_it(kind: Any) -> None:
    assert all(callable(faults(Rig())[0]._of(planned(kind.name, target))) for target in kind.targets)


@pytest.mark.parametrize("error", [LocalServiceError("no"), SandboxError("no"), OSError("no")])
def test_what_could_not_be_done_is_said(error: Exception) -> None:
    done = faults(Rig(error))[0].do(planned("kill", "worker"))
    assert "no" in done.outcome and done.begun <= done.ended


def test_a_server_that_was_killed_is_started_again_also_when_the_run_is_stopped() -> None:
    rig = Rig()
    them, stop = faults(rig)
    threading.Timer(0.05, stop.set).start()
    done = them.do(planned("away", "kafka", 300.0))
    assert rig.did == [("kill", "server"), "start"]
    assert done.ended - done.begun < 60
    assert them.do(planned("away", "kafka", 300.0)).outcome and len(rig.did) == 2


def test_faults_of_one_target_never_overlap_however_long_they_take() -> None:
    inside: list[int] = []

    class Slow(Rig):
        def start(self, name: str = "server") -> None:
            inside.append(1)
            assert len(inside) == 1
            time.sleep(0.02)
            inside.pop()

    them, _ = faults(Slow())
    threads = [threading.Thread(target=lambda: outcomes.append(them.do(planned("kill", "kafka")).outcome)) for _ in range(5)]
    outcomes: list[str] = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes == [""] * 5


def test_a_fault_without_end_is_cleared_and_one_that_waits_for_headrace_is_forced() -> None:
    rig = Rig()
    them, _ = faults(rig)
    them.do(planned("revoke", "iterable", 0.01))
    assert [did[1] for did in rig.did] == ["POST", "DELETE"]
    rig.did.clear()
    them.do(planned("html-503", "salesforce", variant="token"))
    them.do(planned("invalid-replay", "salesforce"))
    them.do(planned("duplicate", "salesforce", variant="5"))
    assert [did[2] for did in rig.did] == [
        {"name": "html-503", "variant": "token"},
        {"name": "expire-token"},
        {"name": "invalid-replay"},
        {"name": "unknown-client"},
        {"name": "duplicate", "times": 5},
    ]


def test_a_clock_that_was_stepped_is_set_right_and_a_flow_that_was_changed_is_brought_back_also_when_the_run_is_stopped() -> None:
    rig = Rig()
    them, stop = faults(rig)
    threading.Timer(0.05, stop.set).start()
    them.do(planned("clock", "receive", 300.0, "-2"))
    assert rig.did == [("receive", -2 * 86_400.0), ("receive", 0.0)]
    rig.did.clear()
    them, stop = faults(rig)
    threading.Timer(0.05, stop.set).start()
    them.do(planned("roll", "flow", 300.0))
    assert rig.did == [(name, flow) for flow in ("narrow.yaml", "demo.yaml") for name in ("worker", "worker-2")]


@pytest.mark.parametrize(("variant", "lines"), [("event", 1), ("write", 2)])
def test_what_is_too_large_is_small_again_at_the_end(variant: str, lines: int) -> None:
    rig = Rig()
    faults(rig)[0].do(planned("oversize", "org", variant=variant))
    made, emitted, small = (did[2] for did in rig.did)
    sizes = [len(line) for line in emitted.splitlines()]
    assert len(sizes) == lines and sum(sizes) > MAX_RECORD and (lines == 1 or max(sizes) < MAX_RECORD)
    assert made["changes"][0]["op"] == "create"
    grown = {name for line in emitted.splitlines() for name in json.loads(line)["payload"]["ChangeEventHeader"]["changedFields"]}
    assert grown <= set(small["changes"][0]["values"])


def test_a_process_of_a_soak_has_a_clock_that_can_be_stepped_while_it_runs_and_stays_so_over_a_restart(tmp_path: Path) -> None:
    started: list[Any] = []
    rig: Any = SimpleNamespace(folder=tmp_path, flow=Path("demo.yaml"), run=lambda role, *, name, environ: started.append((role, environ)))
    crew = Crew(rig)
    crew.start("worker-2")
    ((role, environ),) = started
    assert role == "worker"
    line = "import sys, time\nfor _ in sys.stdin: print(time.time(), flush=True)"
    for off in (0.0, 86_400.0):  # the second one begins when the clock is off already
        with subprocess.Popen(
            [sys.executable, "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environ
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            for stepped in (off, 86_400.0, -86_400.0, 86_400.0):
                crew.step("worker-2", stepped)
                process.stdin.write("\n")
                process.stdin.flush()
                assert abs(float(process.stdout.readline()) - time.time() - stepped) < 60
            process.stdin.close()


def test_the_flow_of_a_soak_reads_one_object_more_than_its_narrow_one(tmp_path: Path) -> None:
    wide = own_flow(tmp_path)
    assert wide.read_text() == f"{narrow(wide).read_text()}\n{CASES}"
    variables = dict.fromkeys(re.findall(r"\$\{(\w+)\}", wide.read_text()), "http://x") | {
        "FORMS_SECRET": "whsec_aGVhZHJhY2UtZGVtby1zZWNyZXQ="
    }
    routes = [set(load_flow(path, variables).routes) for path in (wide, narrow(wide))]
    assert routes[0] - routes[1] == {"cases"}
