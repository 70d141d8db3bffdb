"""Doing the faults of a soak: everything the schedule can say can be done, what cannot be done is said, and a stop mends at once."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.local.process import LocalServiceError
from deploy.sandbox.client import SandboxError
from deploy.soak.faults import Faults
from deploy.soak.schedule import KINDS, Planned


class Rig:
    """Takes note of what is asked of it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.did: list[Any] = []
        self.error = error
        self.services = SimpleNamespace(kafka=self, postgres=self)

    def ask(self, method: str, path: str, body: Any = None, *, target: str = "salesforce") -> None:
        self.did.append((target, method, path if body is None else body))
        if self.error:
            raise self.error

    def kill(self, name: str = "server") -> None:
        self.did.append(("kill", name))
        if self.error:
            raise self.error

    def start(self) -> None:
        self.did.append("start")


def planned(name: str, target: str, seconds: float = 0.0, variant: str = "") -> Planned:
    return Planned(1, name, target, 5.0, seconds, variant)


def faults(rig: Rig) -> tuple[Any, threading.Event]:
    stop = threading.Event()
    return Faults(rig, stop), stop  # type: ignore[arg-type]


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
        def start(self) -> None:
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
