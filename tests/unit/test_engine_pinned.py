"""The start-up check knows every foreign class and private name that the engine touches, and refuses what is not as it was read."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from models.errors import FatalError
from models.settings import Settings
from streams.app import create_app
from streams.engine import pinned

ROOT = Path(__file__).resolve().parents[2] / "streams"
TOUCHING = [*(ROOT / "engine").glob("*.py"), ROOT / "app.py", ROOT / "publish.py", ROOT / "consume.py", ROOT / "kafka.py"]
PLAIN = re.compile(r"\w*(Error|Exception|Fenced|Failed)")
HARMLESS = {"TP", "TopicPartition", "OffsetAndMetadata", "for_code", "ConnectionGroup", "CoordinationType", "stock", "App"}
"""Plain values; and modules and classes of which single functions are pinned."""


ORIGINALS = {
    name: pinned.digest(name) for name in ("faust.streams:Stream.events", "aiokafka.consumer.fetcher:Fetcher._create_fetch_waiter")
}


def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in TOUCHING]


def source(name: str) -> str:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return inspect.getsource(found)


def test_every_private_name_of_others_that_is_touched_stands_in_pinned_code() -> None:
    own = {node.attr for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)}
    own |= {target.id for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) for target in names(node.target)}
    pinned_code = "\n".join(map(source, pinned.SOURCES))
    unknown = [
        f"{path.name}:{node.lineno} {ast.unparse(node)}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.match("_[a-z]", node.attr)
        and not is_self(node.value)
        and not (node.attr in own and isinstance(node.value, ast.Name) and node.value.id[0].isupper())  # a class variable of our own
        and ast.unparse(node) != "os._exit"
        and not re.search(rf"(self\.|def ){node.attr}\b", pinned_code)
    ]
    assert unknown == []


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def names(node: ast.expr) -> list[ast.Name]:
    return [node] if isinstance(node, ast.Name) else []


def test_every_class_and_function_of_faust_and_aiokafka_that_is_imported_is_pinned() -> None:
    known = {part for name in pinned.SOURCES for part in name.partition(":")[2].split(".")[:1]}
    imported = {
        alias.name
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and re.match(r"(faust|aiokafka|mode)\b", node.module or "")
        for alias in node.names
        if not PLAIN.fullmatch(alias.name) and alias.name[0].isalpha()
    }
    assert imported - known - HARMLESS - {"aiokafka", "ConfigResource", "ConfigResourceType"} == set()


@pytest.mark.parametrize("name", ["faust.streams:Stream.events", "aiokafka.consumer.fetcher:Fetcher._create_fetch_waiter"])
def test_a_changed_function_is_refused_at_the_start_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    def another(self: object) -> None:
        """Not what was read."""

    module, _, path = name.partition(":")
    monkeypatch.setattr(f"{module}.{path}", another)
    monkeypatch.setitem(pinned.SOURCES, name, pinned.SOURCES.get(name, ORIGINALS[name]))
    with pytest.raises(FatalError, match=rf"written against other code: {re.escape(name)}; install requirements\.txt"):
        create_app(Settings(installation="t", state=tmp_path), [])


def test_the_installed_code_is_the_one_that_was_read() -> None:
    pinned.check()


def test_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pinned.VERSIONS, "aiokafka", "0.13.0")
    with pytest.raises(FatalError, match=r"aiokafka 0\.14\.0 \(read: 0\.13\.0\)"):
        pinned.check()
