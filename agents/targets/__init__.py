"""The targets. This folder is their registry: agents/targets/<type>.py holds one class named `Target`; the flow file says `type: <type>`.

How to add a target
-------------------
1. Write agents/targets/<type>.py with two classes:
   - options, derived from `base.Options`: what the flow file may set (secrets are `SecretStr`; unknown keys are refused),
   - `Target`, which fulfils `base.TargetLike`: what one batch may hold, how many requests a second the whole project may make, whether it
     `compares` turns, whether it `renames` keys, and the methods start, write, probe, close, same_key.
   One that can say what its fields take also has `describe`; of what it refuses it names field and rule (WriteResult, PermanentError).
   It knows its wire and nothing else. It raises the errors of models/errors.py; retry, splitting, pausing, rate and dead letters are the
   writer's and the guard's. Clean what the remote says with `models.scrub.scrub` before it enters an error. HTTP goes through
   agents/outbound.py.
2. Write tests/conformance/test_<type>.py: inherit `tests.conformance.suite.Conformance`, say how a fresh target is made and what it holds.
3. Name it in a flow file. Topics, agent, metrics, dead letters and dashboard rows follow from the target's name there.
"""

import importlib
import pkgutil
from typing import cast

from pydantic import ValidationError

from agents.targets.base import TargetLike
from models.errors import SettingsError
from models.flow import Target

NOT_TARGETS = ("base",)


def known_types() -> list[str]:
    """Every type a flow file may name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_TARGETS)


def find_target(type_name: str) -> type[TargetLike]:
    """The class of a target type. Raises SettingsError, which lists the known ones."""
    if type_name not in known_types():
        raise SettingsError(f"there is no target type {type_name!r}; known types: {', '.join(known_types())}")
    module = importlib.import_module(f"{__name__}.{type_name}")
    found = getattr(module, "Target", None)
    if found is None:
        raise SettingsError(f"agents/targets/{type_name}.py has no class named Target; see the first lines of agents/targets/__init__.py")
    return cast("type[TargetLike]", found)


def make_target(name: str, target: Target, installation: str) -> TargetLike:
    """The target of this name, its options read; no I/O. Raises SettingsError naming the option."""
    kind = find_target(target.type)
    try:
        options = kind.options_class.model_validate(target.options)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg']}" for fault in error.errors(include_input=False)
        )
        raise SettingsError(f"target {name} ({target.type}): {faults}") from None
    return kind(name, options, installation)
