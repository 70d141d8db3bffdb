"""A transform as a map writes it, made into a function once: a name, {name: argument}, or `module:function` of one's own. No eval.

Functions of one's own are found by the entry point group `headrace.transforms` or by their path; importing one is the only thing here
that is not pure. They take a value that is not null and give one that JSON can hold; a ValueError says, without the value, why it does
not fit.
"""

import sys
from collections.abc import Callable, Mapping
from datetime import tzinfo
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from inspect import isfunction
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from phonenumbers import SUPPORTED_REGIONS

from agents.rules.mapping import MapType, Step
from agents.rules.normalisers import first_name, last_name, phone, registered_domain, user, valid_mail
from agents.rules.transforms import TRANSFORMS, Transform, boolean, day, integer, kind, moment, number
from streams.yaml_lines import did_you_mean

GROUP = "headrace.transforms"
Tables = Mapping[str, Mapping[str, Any]]


class StepError(Exception):
    """A transform as written cannot be had."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message, self.remedy = message, remedy


PLAIN: dict[str, Transform | None] = TRANSFORMS | {
    "valid_mail": valid_mail,
    "phone": phone,
    "registered_domain": registered_domain,
    "first_name": first_name,
    "last_name": last_name,
    "user": user,
}
GIVES: dict[str, MapType] = {
    "number": "number",
    "integer": "integer",
    "to_millis": "integer",
    "boolean": "boolean",
    "date": "date",
    "datetime": "datetime",
    "from_millis": "datetime",
    **dict.fromkeys(("mail", "valid_mail", "phone", "domain", "registered_domain", "first_name", "last_name", "user"), "text"),
}


def make_step(written: Any, tables: Tables) -> Step | None:
    """The step; None for `none`. Raises StepError."""
    name, argument = written, None
    if isinstance(written, dict):
        if len(written) != 1:
            raise StepError("a transform with an argument is one pair", "write for example {phone: DE}")
        [(name, argument)] = written.items()
        if argument is None:
            raise StepError(f"the transform {name} has no argument", f"write {name}: and its argument, or the bare name")
    if not isinstance(name, str):
        raise StepError("a transform is a name", "write for example  transform: [trim, {phone: DE}]")
    if argument is not None and name in WITH_ARGUMENT:
        return Step(f"{name} {argument}", WITH_ARGUMENT[name](argument, tables), GIVES.get(name))
    if name in PLAIN:
        if argument is not None:
            raise StepError(f"the transform {name} takes no argument", f"write {name} alone")
        run = PLAIN[name]
        return Step(name, run, GIVES.get(name)) if run is not None else None
    if name in WITH_ARGUMENT:
        raise StepError(f"the transform {name} wants an argument", f"write {{{name}: {EXAMPLES[name]}}}")
    function = _own(name)
    return Step(name, _checked(function if argument is None else lambda value: function(value, argument)))


def type_step(wanted: MapType) -> Step | None:
    """The step that makes a value one of a map's `type:`, or refuses it; None for json."""
    run = TYPES[wanted]
    return Step(f"type {wanted}", run, wanted) if run is not None else None


def _as_text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode() if abs(value) < 2**63 else str(value)
    raise ValueError(f"{kind(value)} is not text")


TYPES: dict[MapType, Transform | None] = {
    "text": _as_text,
    "number": number,
    "integer": integer,
    "boolean": boolean,
    "date": day,
    "datetime": moment,
    "json": None,
}


def _own(name: str) -> Callable[..., Any]:
    path, of = name, "an installed package"
    if ":" not in name:
        found = next(iter(entry_points(group=GROUP, name=name)), None)
        if found is None:
            known = (*PLAIN, *WITH_ARGUMENT, *(point.name for point in entry_points(group=GROUP)))
            raise StepError(f"unknown transform {name}", did_you_mean(name, known))
        path, of = found.value, f"the entry point {name}"
    module, _, function_name = path.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise StepError(f"the transform {name} is no function of your own", "write one in a module of yours and name that")
    try:
        function = getattr(import_module(module), function_name)
    except AttributeError:
        raise StepError(f"{module} has no function {function_name}", f"define it there, or mend the name in {of}") from None
    except (ImportError, SyntaxError, NameError, TypeError, ValueError, LookupError, OSError, RuntimeError, ArithmeticError) as error:
        raise StepError(f"{module} cannot be imported: {error}", "install it beside Headrace, or put its folder on PYTHONPATH") from None
    if not isfunction(function):
        raise StepError(f"{path} is no function", "name a function that takes a value and gives one")
    return function


def _checked(function: Callable[[Any], Any]) -> Transform:
    def run(value: Any) -> Any:
        found = function(value)
        if found is not None and type(found) not in (str, bool, float):
            try:
                orjson.dumps(found)
            except TypeError:
                raise ValueError(f"the transform gave a {type(found).__name__}, which JSON cannot hold") from None
        return found

    return run


def _phone(region: Any, _: Tables) -> Transform:
    if not isinstance(region, str) or region not in SUPPORTED_REGIONS:
        raise StepError(f"{region} is no region of phone numbers", "write a country's two letters, such as DE or US")
    return partial(phone, region=region)


def _number(sign: Any, _: Tables) -> Transform:
    if sign not in (".", ","):
        raise StepError("the argument of number is its decimal sign", 'write {number: ","} or {number: "."}')
    return partial(number, decimal=sign)


def _zone(name: Any) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, TypeError, OSError, AttributeError):
        raise StepError(f"{name} is no time zone", "write one such as Europe/Berlin") from None


def _truncate(length: Any, _: Tables) -> Transform:
    if type(length) is not int or length < 1:
        raise StepError("the argument of truncate is a length", "write for example {truncate: 80}")
    return lambda value: value[:length].rstrip() if isinstance(value, str) and len(value) > length else value


def _table(name: Any, tables: Tables) -> Mapping[str, Any]:
    if not isinstance(name, str) or name not in tables:
        raise StepError(f"there is no table {name}", did_you_mean(name, tables, "write it under tables:"))
    return tables[name]


def _look_up(table: Mapping[str, Any], name: str) -> Transform:
    def run(value: Any) -> Any:
        try:
            return table[value]
        except (KeyError, TypeError):
            raise ValueError(f"{kind(value)} is not in the table {name}") from None

    return run


def _pick(name: Any, tables: Tables) -> Transform:
    return _look_up(_table(name, tables), name)


def _unpick(name: Any, tables: Tables) -> Transform:
    table = _table(name, tables)
    back = {value: key for key, value in table.items() if value is not None}
    if len(back) != len(table):
        raise StepError(f"the table {name} cannot be read backwards: two keys have one value", "give each key a value of its own")
    return _look_up(back, name)


WITH_ARGUMENT: dict[str, Callable[[Any, Tables], Transform]] = {
    "phone": _phone,
    "number": _number,
    "date": lambda name, _: partial(day, zone=_zone(name)),
    "datetime": lambda name, _: partial(moment, zone=_zone(name)),
    "truncate": _truncate,
    "pick": _pick,
    "unpick": _unpick,
}
EXAMPLES = {"truncate": "80", "pick": "stages", "unpick": "stages"}
