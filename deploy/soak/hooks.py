"""A sender of webhooks, as senders are: it repeats each delivery under its id until it was accepted."""

import threading
import time
from dataclasses import dataclass, field

from deploy.demo import send_hook
from deploy.rig import Rig

GIVE_UP_SECONDS = 60.0
"""After the last fault: a receiver that does not answer by then never will."""


@dataclass
class Sender:
    """`accepted` holds the ids that got a 2xx; `attempts` counts the requests. `run` is a thread's work, until `stop`."""

    rig: Rig
    stop: threading.Event
    every: float = 0.4
    accepted: dict[str, str] = field(default_factory=dict)
    attempts: int = 0
    _open: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """New ones at the rate, and once more what is still open."""
        number = 0
        while not self.stop.wait(self.every):
            number += 1
            self._open[f"hook-{number}"] = f"guest{number}@example.org"
            self._send()

    def finish(self) -> list[str]:
        """Send what is open until all is accepted; ids that never were."""
        until = time.monotonic() + GIVE_UP_SECONDS
        while self._open and time.monotonic() < until:
            self._send()
            if self._open:
                time.sleep(0.5)
        return sorted(self._open)

    def _send(self) -> None:
        for name, address in list(self._open.items()):
            self.attempts += 1
            if not send_hook(self.rig, {"data": {"id": name, "email": address, "name": "Ada Example"}}, f"msg_{self.rig.name}_{name}"):
                return  # the others would fare no better; all again after a while
            self.accepted[name] = self._open.pop(name)
