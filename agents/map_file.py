"""Map files: what a person wrote of a map is read, and told where it is wrong.

A map file is YAML or JSON: `version: 1`, `fields:` from source path to target path or to {to: path, transform: …, …}, `tables:` that its
transforms look values up in. The plain form {"Owner.Email": "dataFields.Owner.Email"}, that is what `fields:` holds, is read as it is.
Reads one file, asks nobody, knows nothing of routes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from agents.map_steps import StepError, make_step, type_step
from agents.rules.mapping import Leaf, Map, MapType, Nulls, Step, identifier
from streams.yaml_lines import Document, Mistake, Path_, did_you_mean, read_yaml

Place = tuple[str, ...]
OPTIONS = ("to", "or", "only", "transform", "type", "required", "nulls", "default")


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A mistake. `place` is in the flow file ("routes", name, "where"); `file` and `line` are those of a map file, if it is there."""

    place: Place
    message: str
    remedy: str
    file: str | None = None
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else ".".join(self.place)
        return f"{where}: {self.message}; {self.remedy}"


def read_map(path: Path, place: Place = (), text: str | None = None) -> tuple[Map | None, list[Problem]]:
    """Read a map file, or its `text` where that is known: the map as far as it is right, and its mistakes."""
    document = read_yaml(path, None, text=text)
    value = document.value
    reader = _Reader(document)
    if not document.mistakes:
        reader.read(value)
        _overlaps(document, reader.leaves)
    problems = [Problem(place, mistake.message, mistake.remedy, mistake.file, mistake.line) for mistake in document.mistakes]
    return (Map(str(path), tuple(reader.leaves)) if reader.leaves else None), problems


class _Reader:
    """Plain data to leaves; what is wrong is noted in the document."""

    def __init__(self, document: Document) -> None:
        self.document, self.leaves = document, list[Leaf]()
        self.tables: dict[str, dict[str, Any]] = {}

    def read(self, value: Any) -> None:
        place: Path_ = ()
        if isinstance(value, dict) and _is_document(value):
            value, place = self._document(value), ("fields",)
        if not (isinstance(value, dict) and value):
            if not self.document.mistakes:
                self.document.wrong(
                    place, "a map must hold at least one line `source path: target path`", "write for example  Email: email"
                )
            return
        for source, written in value.items():
            if written == []:
                self.document.wrong((*place, source), f"{source} goes nowhere", "write a target path, or remove the line")
            for index, target in enumerate(written) if isinstance(written, list) else ((None, written),):
                self._leaf((*place, source) if index is None else (*place, source, index), source, target)

    def _document(self, value: dict[str, Any]) -> Any:
        for name in value.keys() - {"version", "fields", "tables"}:
            self.document.wrong((name,), f"unknown part {name}", did_you_mean(name, ("version", "fields", "tables")))
        if type(value.get("version")) is not int or value["version"] != 1:
            self.document.wrong(("version",), "a map says in which form it is written", "write  version: 1  as its first line")
        tables = value.get("tables") or {}
        for name, table in tables.items() if isinstance(tables, dict) else ():
            if isinstance(table, dict) and table and all(value is None or isinstance(value, str | int | float) for value in table.values()):
                self.tables[name] = table
            else:
                self.document.wrong(("tables", name), f"the table {name} must hold pairs of values", "write for example  New: Open")
        if not isinstance(tables, dict):
            self.document.wrong(("tables",), "tables must have names", "write for example  stages: {New: Open}")
        return value.get("fields")

    def _leaf(self, place: Path_, source: Any, written: Any) -> None:
        options = written if isinstance(written, dict) else {"to": written}
        wrong, before = self.document.wrong, len(self.document.mistakes)
        for name in options.keys() - set(OPTIONS):
            wrong((*place, name), f"unknown option {name}", did_you_mean(name, OPTIONS))
        to, instead = options.get("to"), options.get("or", [])
        instead = instead if isinstance(instead, list) else [instead]
        if not _is_path(to):
            wrong(place, f"the target of {source} must be a path such as dataFields.Owner.Email", "write names joined by dots")
        for path in (source, *instead):
            if not _is_path(path):
                wrong(place, f"the source {path} must be a path such as Owner.Email", "write names joined by dots")
        only = options.get("only", [])
        only = only if isinstance(only, list) else [only]
        if not all(isinstance(name, str) and _is_step(name) for name in only) or ("only" in options and not only):
            wrong((*place, "only"), f"{source} is only of which objects?", "write  only: Lead  or  only: [Lead, Contact]")
        type_, nulls = options.get("type"), options.get("nulls", "clear")
        if type_ is not None and type_ not in get_args(MapType):
            wrong((*place, "type"), f"unknown type {type_}", did_you_mean(type_, get_args(MapType)))
        if nulls not in get_args(Nulls):
            wrong((*place, "nulls"), f"unknown policy {nulls}", did_you_mean(nulls, get_args(Nulls)))
        if not isinstance(required := options.get("required", False), bool):
            wrong((*place, "required"), "required is true or false", "write  required: true")
        if len(self.document.mistakes) > before or not isinstance(to, str):
            return
        target = tuple(to.split("."))
        steps = self._steps((*place, "transform"), options["transform"]) if "transform" in options else identifier(target)
        default = options.get("default")
        if isinstance(default, int) and abs(default) >= 2**63:
            wrong((*place, "default"), f"the default of {source} is larger than 64 bits", "write it as text")
        if type_ is not None and (check := type_step(type_)) is not None:
            steps = (*steps, check)
            try:
                default = default if default is None else check.run(default)
            except ValueError as error:
                wrong((*place, "default"), f"the default of {source} does not fit its type {type_}: {error}", "mend one of the two")
        if len(self.document.mistakes) == before:
            line = self.document.line(place)
            self.leaves.append(Leaf(source, target, steps, tuple(only), tuple(instead), type_, nulls, default, required, line))

    def _steps(self, place: Path_, written: Any) -> tuple[Step, ...]:
        steps = []
        for one in written if isinstance(written, list) else [written]:
            try:
                if (step := make_step(one, self.tables)) is not None:
                    steps.append(step)
            except StepError as error:
                self.document.wrong(place, error.message, error.remedy)
        return tuple(steps)


def _is_document(value: dict[str, Any]) -> bool:
    """Not the plain form, in which `version` and `fields` may be names of fields."""
    fields = value.get("fields")
    return type(value.get("version")) is int or (isinstance(fields, dict) and not isinstance(fields.get("to"), str))


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and all(map(_is_step, value.split(".")))


def _is_step(step: str) -> bool:
    return step.isidentifier() and step.isascii()


def _overlaps(document: Document, leaves: list[Leaf]) -> None:
    """Two ways to one target path, or one through another: the result would depend on the order of lines."""
    taken: dict[tuple[str, ...], str] = {}

    def wrong(leaf: Leaf, message: str, remedy: str) -> None:
        document.mistakes.append(Mistake(document.file, leaf.line, message, remedy))

    for leaf in leaves:
        if leaf.target in taken:
            wrong(leaf, f"{'.'.join(leaf.target)} is written by {taken[leaf.target]} too", "remove one of the two lines")
        taken[leaf.target] = leaf.source
    for leaf in leaves:
        for end in range(1, len(leaf.target)):
            if leaf.target[:end] in taken:
                above = ".".join(leaf.target[:end])
                wrong(leaf, f"{above} is a value (of {taken[leaf.target[:end]]}) and cannot hold fields", "rename one")
