"""The rules of the house that no linter knows: names, broad catches, forbidden calls, words that must not leave the workshop."""

import ast
import re
import shutil
import subprocess
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "streams", "agents", "deploy")
MOST_LINES = 400
LONGER: dict[str, str] = {"tests/support/rules_world.py": "one world, which versions_world.py varies"}
"""File → why it may be longer than MOST_LINES."""

# In pieces, so that this file does not name them.
HOSTS = ("pypi" + ".org", "python" + "hosted.org", "maven" + ".org", "maven" + ".apache.org", "npm" + "js.org", "artifactory" + ".")
PLACES = (r"(?<![\w.$}-])/wo" + r"rk\b", r"(?<![\w.$}-])/ro" + r"ot\b", r"\.\./sha" + "red")


def tracked() -> list[Path]:
    """The repository's files; outside a clone (a source archive) all files that are not made."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    made = {".venv", ".headrace", "__pycache__"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not made & set(path.relative_to(ROOT).parts)]


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_other_distribution_owns_our_package_names() -> None:
    owners = packages_distributions()
    assert {package: set(owners.get(package, [])) for package in PACKAGES} == {package: {"headrace"} for package in PACKAGES}


def is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    if caught is None:
        return True
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"} for kind in kinds)


def ends_the_matter(statement: ast.stmt) -> bool:
    """`raise`, or a call of os._exit."""
    if isinstance(statement, ast.Raise):
        return True
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and ast.unparse(statement.value.func) == "os._exit"


def broad_catches(source: str) -> list[int]:
    """Lines of the handlers, and of suppress() calls, that swallow any error."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler) and is_broad(node) and not ends_the_matter(node.body[-1]):
            found.append(node.lineno)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            found += [node.lineno for kind in node.args if ast.unparse(kind) in {"Exception", "BaseException"}]
    return found


@pytest.mark.parametrize(
    ("body", "caught"),
    [
        ("except Exception:\n    pass", True),
        ("except:\n    log()", True),
        ("except (ValueError, BaseException) as e:\n    log(e)", True),
        ("except Exception:\n    log()\n    raise", False),
        ("except BaseException:\n    os._exit(1)", False),
        ("except ValueError:\n    pass", False),
    ],
)
def test_the_search_for_broad_catches_finds_them(body: str, caught: bool) -> None:
    assert bool(broad_catches(f"try:\n    f()\n{body}")) is caught
    assert broad_catches("with contextlib.suppress(Exception):\n    f()")


def test_only_the_guard_catches_broadly() -> None:
    found = {f"{name(path)}:{line}" for path in sources(*PACKAGES) for line in broad_catches(path.read_text())}
    assert {place for place in found if not place.startswith("agents/guard.py:")} == set()


def test_every_module_says_why_it_exists() -> None:
    silent = [
        name(path)
        for path in sources(*PACKAGES, "tests")
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


FORBIDDEN_CALLS = {"take", "take_events", "take_with_timestamp", "send_soon"}
FORBIDDEN_NAMES = {"producer_threaded", "stream_publish_on_commit", "exactly_once"}


def forbidden_uses(source: str) -> list[str]:
    """What loses events in Faust: calls of its batching and of send_soon, and three settings, by name or as a string's whole value."""
    found = []
    for node in ast.walk(ast.parse(source)):
        # Faust's all take arguments; a take() of somebody else's without any is none of theirs.
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in FORBIDDEN_CALLS
            and (node.args or node.keywords)
        ):
            found.append(f"{node.lineno}: {node.func.attr}")
        words = [getattr(node, field, None) for field in ("id", "attr", "arg", "value")]
        found += [f"{getattr(node, 'lineno', '?')}: {word}" for word in words if isinstance(word, str) and word in FORBIDDEN_NAMES]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "stream.take(10)",
        "stream.take(max_=9, within=1)",
        "topic.send_soon(x)",
        "App(producer_threaded=True)",
        "App(guarantee='exactly_once')",
    ],
)
def test_the_search_for_forbidden_calls_finds_them(source: str) -> None:
    assert forbidden_uses(source)


def test_nothing_of_faust_that_loses_events_is_used() -> None:
    found = [f"{name(path)}:{use}" for path in sources("models", "streams", "agents") for use in forbidden_uses(path.read_text())]
    assert found == []


def test_no_file_names_a_registry_host_or_a_place_of_the_workshop() -> None:
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{name(path)}: {host}" for host in HOSTS if host in text]
        found += [f"{name(path)}: {match.group()}" for place in PLACES if (match := re.search(place, text))]
    assert found == []


def test_no_file_is_too_long_without_a_reason() -> None:
    long = {name(path): lines for path in sources(*PACKAGES, "tests") if (lines := path.read_bytes().count(b"\n")) > MOST_LINES}
    assert {path: lines for path, lines in long.items() if path not in LONGER} == {}
    assert set(LONGER) <= set(long), "an entry of LONGER is no longer needed"
