"""Faults of the sandbox org that act at once, and what the others need when they are switched on."""

import asyncio
from typing import Any

from deploy.sandbox import serve
from deploy.sandbox.faults import Armed
from deploy.sandbox.salesforce.cometd import Cometd
from deploy.sandbox.salesforce.oauth import OAuth
from deploy.sandbox.salesforce.org import Org


class Strike:
    def __init__(self, org: Org, oauth: OAuth, cometd: Cometd) -> None:
        self.org, self.oauth, self.cometd = org, oauth, cometd
        self.listener: serve.Listener | None = None
        self._background: set[asyncio.Task[None]] = set()

    def arm(self, given: dict[str, Any]) -> Armed:
        """Switch on what a control request asks for. Errors: ValueError."""
        armed = self.org.faults.arm_given(given)
        match armed.name:
            case "drop-connections":
                self.cometd.cut_held()
            case "server-restart":
                self._later(self._restart(armed.seconds))
            case "expire-token" | "revoke":
                self.oauth.expire_all()
            case "silent" if armed.variant == "session":
                self.cometd.deafen()
                self.org.faults.take("silent")
                self.org.faults.clear("silent")
            case "expired-position":
                self._expire(armed.variant)
            case "org-migration":
                self.org.migrate(armed.variant)
                if armed.variant == "org":
                    self.oauth.expire_all()
                    self.cometd.forget_sessions()
            case "merged":
                self._merge(armed.left or 300)
        if self.org.faults.kinds[armed.name].instant:
            self.org.faults.note(armed.name)
        self.cometd.wake()
        return armed

    def _expire(self, variant: str) -> None:
        events = self.org.bus.after(0)
        if events:
            self.org.bus.drop_until(events[-1 if variant == "all" else (len(events) - 1) // 2].replay_id)

    def _merge(self, count: int) -> None:
        """One change of very many contacts. Done twice: at first LastModifiedById changes for some, which keeps events apart."""
        contact = self.org.schema.objects["Contact"]
        for text in ("Merged change", f"Merged change {self.org.bus.end}"):
            transaction = self.org.begin()
            for row in list(self.org.store.live(contact))[:count]:
                transaction.update(contact, row["Id"], {"Description": text})
            self.org.commit(transaction, "com/salesforce/api/bulkapi/67.0")

    async def _restart(self, seconds: float) -> None:
        await asyncio.sleep(0.05)  # the answer to the command goes out first
        self.cometd.forget_sessions()
        if self.listener is not None:
            await self.listener.refuse_for(seconds)

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
