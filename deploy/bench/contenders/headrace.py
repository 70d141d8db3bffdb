"""Headrace's engine with one stage: pass (records on as they are) or step (the real processing stage, as `headrace worker` runs it)."""

import os
import sys
from pathlib import Path

from deploy.bench import spec
from models.settings import Settings
from streams.app import create_app
from streams.engine.stage import Chunk, Output, Partition, Result, Stage
from streams.flow_file import load_flow
from streams.garbage import collect_rarely
from streams.log import set_up_logging

FLOW = Path(__file__).parents[1] / "flow.yaml"


def stage(given: spec.Spec, settings: Settings) -> Stage:
    """The stage of a mode."""
    if given.mode == "pass":

        async def passing(chunk: Chunk, _: Partition) -> Result:
            return Result([Output(given.out, r.key, r.value, partition=r.partition) for r in chunk.records])

        return Stage("pass", (given.source,), (), passing)
    from agents.maps import load_maps
    from agents.process import process_stage
    from agents.targets import make_target

    flow = load_flow(FLOW, os.environ)
    targets = {name: make_target(name, target, given.name) for name, target in flow.targets.items()}
    return process_stage(flow, settings, load_maps(flow, targets))


if __name__ == "__main__":
    given = spec.read()
    settings = Settings(kafka=given.bootstrap, installation=given.name, partitions=given.partitions, state=Path(given.state))
    set_up_logging("json")
    app = create_app(settings, [stage(given, settings)])
    collect_rarely()
    sys.argv[1:] = ["worker", "--without-web", "-l", "warn"]
    app.main()
