"""Does what the schedule says, to a running rig: kills, suspends and restarts processes and servers, switches faults of the sandboxes on.

It undoes everything it did, also when it is told to stop in the middle; what it could not do is said, never raised.
"""

import contextlib
import json
import random
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.local.process import LocalServiceError
from deploy.rig import Rig, as_line
from deploy.sandbox.client import SandboxError
from deploy.soak.crew import Crew, narrow
from deploy.soak.schedule import WORKERS, Planned

FORCED = {"refuse-resubscribe": "unknown-client", "invalid-replay": "unknown-client", "handshake-denied": "unknown-client"}
"""A fault that waits for something Headrace does now and then, and what makes Headrace do it now."""
UNTIL_CLEARED = {("salesforce", "revoke"), ("salesforce", "silent"), ("iterable", "revoke"), ("iterable", "down")}


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that was done. `begun` and `ended` are epoch seconds; `outcome` is empty when all went as planned."""

    planned: Planned
    begun: float
    ended: float
    outcome: str = ""

    def near(self, moment: float, after: float) -> bool:
        """Whether something at that epoch second may come of it, up to `after` seconds later."""
        return self.begun - 1.0 <= moment <= self.ended + after


class Faults:
    """Each fault is done by `do`, in a thread of its own; those of one target one after the other, however long they really take.

    stop    ends the waiting: what is broken is mended at once
    """

    def __init__(self, rig: Rig, crew: Crew, stop: threading.Event) -> None:
        self._rig, self._crew, self._stop = rig, crew, stop
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._taking = threading.Lock()

    def do(self, planned: Planned) -> Struck:
        """Break it, wait, mend it."""
        with self._lock(planned.target):
            begun = time.time()
            if self._stop.is_set():
                return Struck(planned, begun, begun, "left out: the run was stopped")
            try:
                outcome = self._of(planned)(planned) or ""
            except (LocalServiceError, SandboxError, psutil.Error, OSError) as error:
                outcome = f"{type(error).__name__}: {as_line(error)}"
            return Struck(planned, begun, time.time(), outcome)

    def _lock(self, target: str) -> threading.Lock:
        with self._taking:
            return self._locks[target]

    def _of(self, planned: Planned) -> Callable[[Planned], str | None]:
        if planned.target in ("salesforce", "iterable"):
            return self._sandbox
        if planned.target in ("kafka", "postgres"):
            return self._server
        own: dict[str, Callable[[Planned], str | None]] = {
            "kill": self._kill,
            "crash": self._crash,
            "terminate": self._terminate,
            "suspend": self._suspend,
            "state-lost": self._crash,
            "state-damaged": self._crash,
            "add": self._add,
            "clock": self._clock,
            "roll": self._roll,
            "oversize": self._oversize,
            "poison": self._poison,
            "snapshot": self._snapshot,
        }
        return own[planned.name]

    # processes

    def _kill(self, planned: Planned) -> None:
        self._rig.kill(planned.target)

    def _crash(self, planned: Planned) -> None:
        """kill -9 of the parent too, whatever becomes of its state folder, and a start by hand."""
        self._rig.processes[planned.target].kill()
        folder = self._rig.state_folder(planned.target)
        if planned.name == "state-lost":
            shutil.rmtree(folder, ignore_errors=True)
        elif planned.name == "state-damaged":
            damage(folder, planned)
        self._stop.wait(planned.seconds)
        self._crew.start(planned.target)

    def _terminate(self, planned: Planned) -> None:
        self._crew.stop(planned.target)
        self._stop.wait(planned.seconds)
        self._crew.start(planned.target)

    def _suspend(self, planned: Planned) -> str | None:
        pid = self._rig.processes[planned.target].pid
        children = psutil.Process(pid).children() if pid is not None else []
        for child in children:
            child.suspend()
        self._stop.wait(planned.seconds)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()
        return None if children else "nobody to suspend: it was being started again"

    def _add(self, planned: Planned) -> None:
        self._crew.start(planned.target)
        self._stop.wait(planned.seconds)
        self._crew.stop(planned.target)

    def _clock(self, planned: Planned) -> None:
        """So many days off, and right again. (Whole days: everything that has an age is then too old, or of tomorrow.)"""
        self._crew.step(planned.target, 86_400.0 * float(planned.variant))
        self._stop.wait(planned.seconds)
        self._crew.step(planned.target, 0.0)

    def _roll(self, planned: Planned) -> None:
        """One worker after the other to a flow with one sObject less, and after a while back. Other faults may strike in between."""
        flow = self._rig.flow
        for number, chosen in enumerate((narrow(flow), flow)):
            if number:
                self._stop.wait(planned.seconds)
            for name in WORKERS:
                with self._lock(name):
                    self._crew.change_flow(name, chosen)

    # servers

    def _server(self, planned: Planned) -> None:
        server = self._rig.services.kafka if planned.target == "kafka" else self._rig.services.postgres
        if planned.name == "restart":
            server.stop()
        else:
            server.kill()
        self._stop.wait(planned.seconds)
        server.start()

    # sandboxes

    def _sandbox(self, planned: Planned) -> None:
        given: dict[str, Any] = {"name": planned.name}
        if planned.variant.isdigit():
            given["times"] = int(planned.variant)
        elif planned.variant:
            given["variant"] = planned.variant
        if planned.seconds:
            given["seconds"] = planned.seconds
        self._rig.ask("POST", "/sandbox/faults", given, target=planned.target)
        force = "expire-token" if planned.variant == "token" else FORCED.get(planned.name)
        if force is not None:
            self._rig.ask("POST", "/sandbox/faults", {"name": force}, target=planned.target)
        if planned.seconds:
            self._stop.wait(planned.seconds)
        if planned.seconds and (planned.target, planned.name) in UNTIL_CLEARED:
            self._rig.ask("DELETE", f"/sandbox/faults?name={planned.name}", target=planned.target)

    # events

    def _poison(self, planned: Planned) -> None:
        self._rig.ask("POST", "/sandbox/emit", poison(planned))

    def _oversize(self, planned: Planned) -> None:
        """An event larger than a record of Kafka may be; or two that are smaller, whose record is. Then it is small again."""
        person = {"LastName": f"Large {planned.number}", "Email": f"large-{planned.number}@example.org"}
        made = self._rig.ask("POST", "/sandbox/transaction", {"changes": [{"op": "create", "type": "Contact", "values": person}]})
        self._rig.ask("POST", "/sandbox/emit", b"\n".join(large(planned.variant, made["ids"][0])))
        small = {"op": "update", "type": "Contact", "id": made["ids"][0], "values": {"Title": "Small", "Phone": "1"}}
        self._rig.ask("POST", "/sandbox/transaction", {"changes": [small]})

    def _snapshot(self, planned: Planned) -> str | None:
        """Every record once more, in the other lane. Where Kafka was away the command says so and ends; the same command would go on."""
        code, printed = self._rig.command("snapshot", planned.variant)
        return None if code == 0 else f"exit code {code}: {as_line(printed)}"


def poison(planned: Planned) -> bytes:
    """One line for the sandbox's emit: an event that nobody can read, different for every fault of a run."""
    header: dict[str, dict[str, Any]] = {
        "no-list": {"entityName": "Contact", "changeType": "UPDATE", "recordIds": planned.number},
        "no-header": {},
        "no-id": {"entityName": "Contact", "changeType": "UPDATE", "recordIds": [f"poison {planned.number}"]},
    }
    payload = {"ChangeEventHeader": header[planned.variant], "Poison": planned.number}
    return json.dumps({"schema": "x", "event": {"replayId": 1}, "payload": payload}).encode()


def large(variant: str, record_id: str) -> list[bytes]:
    """Lines for the sandbox's emit: changes of one record that nobody made, and which no row holds."""
    values: dict[str, list[dict[str, str]]] = {
        "event": [{"Title": "x" * 1_100_000}],
        "write": [{"Title": "x" * 600_000}, {"Phone": "x" * 600_000}],
    }
    header = {"entityName": "Contact", "changeType": "UPDATE", "recordIds": [record_id], "commitTimestamp": int(time.time() * 1000)}
    return [
        json.dumps(
            {"schema": "x", "event": {"replayId": 1}, "payload": {"ChangeEventHeader": header | {"changedFields": [*one]}, **one}}
        ).encode()
        for one in values[variant]
    ]


def damage(folder: Path, planned: Planned) -> None:
    """Overwrite a stretch of some files, or cut their ends off, as a disk does that lost power. Always the same for one fault."""
    chance = random.Random(f"{planned.number} {planned.at}")
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name.lower() not in ("lock", "log") and path.stat().st_size
    )
    for path in chance.sample(files, min(len(files), 1 + len(files) // 4)):
        size = path.stat().st_size
        with path.open("r+b") as file:
            if planned.variant == "cut":
                file.truncate(chance.randrange(size))
            else:
                file.seek(chance.randrange(size))
                file.write(chance.randbytes(min(size, 64)))


def resume_all(rig: Rig) -> None:
    """Nobody stays suspended, whatever happened to the thread that should have seen to it."""
    for process in rig.processes.values():
        if (pid := process.pid) is not None:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(pid).children():
                    child.send_signal(signal.SIGCONT)
