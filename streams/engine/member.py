"""Tells the group that the process before us is dead, instead of waiting until its session has run out.

The lock of the state folder proves it: whoever wrote the member id held the lock then, and we hold it now.
"""

import asyncio
from pathlib import Path

import structlog
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.group import LeaveGroupRequest

PATIENCE = 5.0  # seconds; what is not said by then is found out by the group itself
log = structlog.get_logger()


class Member:
    """The member id of a group, in a file below the state folder."""

    def __init__(self, folder: Path, group: str) -> None:
        self._path, self._group = folder / "member", group

    def remember(self, member_id: str) -> None:
        """We are this member now."""
        self._path.write_text(member_id)

    def forget(self) -> None:
        """We left."""
        self._path.unlink(missing_ok=True)

    async def leave_for_predecessor(self, client: AIOKafkaClient) -> None:
        """Leave in the name of the dead member; where Kafka does not answer, its session timeout does the same later."""
        if not (member_id := self._remembered()):
            return
        try:
            async with asyncio.timeout(PATIENCE):
                node = await client.coordinator_lookup(CoordinationType.GROUP, self._group)
                await client.ready(node, group=ConnectionGroup.COORDINATION)
                answer = await client.send(node, LeaveGroupRequest(self._group, member_id), group=ConnectionGroup.COORDINATION)
            log.info("left the group for the process before", member=member_id, answer=for_code(answer.error_code).__name__)
        except (KafkaError, TimeoutError) as error:
            log.warning("the group waits for the process before until its session is over", reason=type(error).__name__)
        self.forget()

    def _remembered(self) -> str:
        """Empty where nobody was remembered, or in a file that can no longer be read."""
        try:
            return self._path.read_text(encoding="ascii")
        except (OSError, ValueError):
            return ""
