"""The worker of the fault suite, a process of its own: `python -m tests.support.fault_worker JSON`.

The real process stage and the real writer stages in the real `run_worker`; only the targets of type `ledger` are the suite's, the waits of
the guard are short, and the fault points of tests/support/fault_points.py are put in. Given: settings (by field), flow, points, clock.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import agents.worker
from agents.guard import Guard
from agents.map_versions import Versions
from agents.process import process_stage
from agents.targets import make_target
from agents.targets.base import TargetLike
from agents.writer import writer_stage
from deploy.processes import stop_signals
from models.flow import Flow
from models.settings import Settings
from streams.engine.stage import Stage
from streams.health import Health
from streams.log import set_up_logging
from tests.support import fault_points
from tests.support.ledger_target import LedgerOptions, Target


def make_targets(flow: Flow, installation: str) -> dict[str, TargetLike]:
    """By name; ledgers beside the product's own."""
    found: dict[str, TargetLike] = {}
    for name, target in flow.targets.items():
        if target.type == "ledger":
            found[name] = cast("TargetLike", Target(name, LedgerOptions.model_validate(target.options), installation))
        else:
            found[name] = make_target(name, target, installation)
    return found


def stages(settings: Settings, flow: Flow, targets: Mapping[str, TargetLike], maps: Versions, rejections: object = None) -> list[Stage]:
    """As agents/worker.py builds them, without a fetch stage: there is no org."""
    writers = [
        writer_stage(name, target, flow, settings, maps, guard=Guard("write", name, probe_seconds=0.5, base=0.1, cap=0.5))
        for name, target in targets.items()
    ]
    return [process_stage(flow, settings, maps), *writers]


async def main(given: Mapping[str, Any]) -> None:
    """Until SIGTERM."""
    settings, flow = Settings(**given["settings"]), Flow.model_validate(given["flow"])
    set_up_logging("text")
    fault_points.arm(given["points"])
    fault_points.clock(Path(given["clock"]) if given.get("clock") else None)
    agents.worker._targets, agents.worker.build_stages = make_targets, stages
    await agents.worker.run_worker(settings, flow, health=Health(settings, "worker"), stop=stop_signals())


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
