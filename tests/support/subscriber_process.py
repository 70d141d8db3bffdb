"""A subscriber, or a snapshot, as a process of its own, for tests that kill it: `python -m tests.support.subscriber_process '{…}'`.

Given as JSON: settings (by variable name), flow, what ("subscribe" | "snapshot"), the options of that function, and the moments at which
it dies (tests/support/fault_points.py).
"""

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from models.flow import Flow
from models.settings import Settings
from streams.salesforce import bulk, jobs
from streams.salesforce.snapshot import run_snapshot
from streams.salesforce.subscriber import run_subscriber
from tests.support import fault_points
from tests.support.salesforce import FIELDS, acme


async def main(given: dict[str, Any]) -> None:
    settings, flow, options = Settings(**given["settings"]), Flow.model_validate(given["flow"]), given["options"]
    fault_points.arm(given["points"])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if given["what"] == "subscribe":
        await run_subscriber(settings, flow, "acme", FIELDS, stop=stop, **options)
    else:
        jobs.CHUNK, bulk.PART = options.pop("chunk", jobs.CHUNK), options.pop("part", bulk.PART)
        await run_snapshot(settings, flow, given["source"], FIELDS[given["source"]], stop=stop, **options)


def command(
    settings: Settings, flow: Flow, what: str, *, source: str = "", points: Sequence[Mapping[str, Any]] = (), **options: Any
) -> list[str]:
    """The command line of one."""
    named = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka,
        "HEADRACE_INSTALLATION": settings.installation,
        "HEADRACE_PARTITIONS": settings.partitions,
        "HEADRACE_SESSION_TIMEOUT": settings.session_timeout,
    }
    shown = flow.model_dump(mode="json", by_alias=True, exclude_unset=True)
    secret = acme(flow).auth.client_secret
    shown["connections"]["acme"]["auth"]["client_secret"] = secret.get_secret_value() if secret else None
    given = {"settings": named, "flow": shown, "what": what, "source": source, "options": options, "points": points}
    return [sys.executable, "-m", "tests.support.subscriber_process", orjson.dumps(given).decode()]


async def start(settings: Settings, flow: Flow, what: str, *, source: str = "", log: Path, **options: Any) -> asyncio.subprocess.Process:
    """Start one; its log goes to a file."""
    with log.open("ab") as out:
        return await asyncio.create_subprocess_exec(*command(settings, flow, what, source=source, **options), stdout=out, stderr=out)


async def end(process: asyncio.subprocess.Process, kill: bool = False) -> int:
    """SIGTERM, or SIGKILL; its exit status."""
    if process.returncode is None:
        process.kill() if kill else process.terminate()
    return await process.wait()


if __name__ == "__main__":
    asyncio.run(main(orjson.loads(sys.argv[1])))
