"""Options that many commands have. Imports nothing of the house."""

from pathlib import Path
from typing import Annotated

import typer

FlowOption = Annotated[
    Path | None, typer.Option("--flow", "-f", metavar="FILE", help="The flow file; else HEADRACE_FLOW, else flow.yaml.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
