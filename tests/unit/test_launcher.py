"""The launcher makes .venv once, again when it must, and never half. Making an environment is replaced; stamps and locks are real."""

import importlib.util
import shutil
import stat
import subprocess
import sys
import threading
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    loader = SourceFileLoader("launcher_under_test", str(REPOSITORY / "headrace"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


launcher = load()


class Recorded(launcher.Environment):  # type: ignore[misc,name-defined]
    """An Environment whose commands are written down: `make` for venv, else pip's arguments."""

    def __init__(self, root: Path, fail_on: str = "") -> None:
        super().__init__(root)
        self.calls: list[str] = []
        self.fail_on = fail_on

    def make(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.python.parent.mkdir(parents=True)
        (self.folder / "pyvenv.cfg").touch()
        self.python.touch(mode=0o755)
        self.calls.append("make")

    def pip(self, *arguments: str, each: Any = None) -> None:
        call = "editable" if "--editable" in arguments else Path(arguments[-1]).name
        self.calls.append(call)
        if call == self.fail_on:
            raise launcher.LaunchError("no network")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("requirements.txt", "requirements-test.txt", "pyproject.toml"):
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


def launch(root: Path, test: bool = False) -> list[str]:
    environment = Recorded(root)
    environment.prepare(test=test)
    return environment.calls


def test_first_launch_makes_the_environment_and_the_second_does_nothing(root: Path) -> None:
    assert launch(root) == ["make", "requirements.txt", "editable"]
    assert launch(root) == []


def test_test_requirements_come_with_the_test_command_only_and_stay(root: Path) -> None:
    launch(root)
    assert launch(root, test=True) == ["requirements-test.txt", "editable"]
    assert launch(root) == []
    assert launch(root, test=True) == []


@pytest.mark.parametrize("changed", ["requirements.txt", "pyproject.toml"])
def test_changed_content_installs_again_and_a_new_time_stamp_alone_does_not(root: Path, changed: str) -> None:
    launch(root)
    (root / changed).touch()
    assert launch(root) == []
    (root / changed).write_text("# other\n")
    assert launch(root) == ["requirements.txt", "editable"]


def test_changed_requirements_are_not_hidden_by_an_older_test_environment(root: Path) -> None:
    launch(root, test=True)
    (root / "requirements.txt").write_text("# other\n")
    assert launch(root) == ["requirements.txt", "editable"]
    assert launch(root, test=True) == ["requirements-test.txt", "editable"]


@pytest.mark.parametrize("broken_at", ["requirements.txt", "editable"])
def test_a_half_made_environment_is_made_anew(root: Path, broken_at: str) -> None:
    with pytest.raises(launcher.LaunchError):
        Recorded(root, fail_on=broken_at).prepare(test=False)
    assert launch(root) == ["make", "requirements.txt", "editable"]


def test_an_update_that_failed_half_way_makes_the_environment_anew(root: Path) -> None:
    launch(root)
    (root / "requirements.txt").write_text("# other\n")
    with pytest.raises(launcher.LaunchError):
        Recorded(root, fail_on="requirements.txt").prepare(test=False)
    assert launch(root)[0] == "make"


@pytest.mark.parametrize("stamp", ["", "{", "[]", "null", '{"root": "/elsewhere"}', "\x00" * 1000])
def test_an_unreadable_or_foreign_stamp_makes_the_environment_anew(root: Path, stamp: str) -> None:
    launch(root)
    (root / ".venv" / "headrace.json").write_text(stamp)
    assert launch(root)[0] == "make"


def test_an_environment_whose_python_is_gone_is_made_anew(root: Path) -> None:
    launch(root)
    python = root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(root / "removed-python")
    assert launch(root)[0] == "make"


def test_a_moved_clone_makes_its_environment_anew(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    launch(root)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "clone"
    shutil.copytree(root, elsewhere)
    assert launch(elsewhere)[0] == "make"


def test_a_folder_named_venv_that_is_none_is_never_deleted(root: Path) -> None:
    (root / ".venv").mkdir()
    (root / ".venv" / "diary.txt").write_text("mine")
    with pytest.raises(launcher.LaunchError, match="not a Python environment"):
        launcher.Environment(root).prepare(test=False)
    assert (root / ".venv" / "diary.txt").read_text() == "mine"


def test_two_launches_at_once_make_one_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, waiting, go_on = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(launcher, "say", lambda text, end="": waiting.set() if text.startswith("waiting for another") else None)

    class Slow(Recorded):
        def make(self) -> None:
            super().make()
            inside.set()
            assert go_on.wait(20)

    first, second = Slow(root), Recorded(root)
    threads = [threading.Thread(target=first.prepare, kwargs={"test": False})]
    threads[0].start()
    assert inside.wait(20)
    threads.append(threading.Thread(target=second.prepare, kwargs={"test": False}))
    threads[1].start()
    second_waited = waiting.wait(20)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert second_waited
    assert first.calls == ["make", "requirements.txt", "editable"]
    assert second.calls == []


def test_missing_venv_module_names_the_apt_line() -> None:
    with pytest.raises(launcher.LaunchError, match="apt install python3-venv"):
        launcher.check_venv(find=lambda name: None if name == "ensurepip" else object())
    launcher.check_venv(find=lambda name: object())


def test_an_old_python_is_named_or_replaced_by_a_newer_one_on_the_path() -> None:
    assert launcher.check_python((3, 11, 2)) is None
    assert launcher.check_python((3, 9, 1), find=lambda name: "/opt/" + name if name == "python3.12" else None) == "/opt/python3.12"
    with pytest.raises(launcher.LaunchError, match=r"3\.11 or newer; this is 3\.9"):
        launcher.check_python((3, 9, 1), find=lambda name: None)


def test_a_failing_command_shows_its_last_words() -> None:
    with pytest.raises(launcher.LaunchError, match="no such index"):
        launcher.run([sys.executable, "-c", "print('no such index'); raise SystemExit(3)"])


def test_the_command_runs_in_the_environment_with_its_arguments_and_exit_code(root: Path) -> None:
    """The real script in a copy of its own; the environment's python is a shell script that says how it was called."""
    launch(root)
    shutil.copy(REPOSITORY / "headrace", root / "headrace")
    python = root / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 7\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run([sys.executable, str(root / "headrace"), "status", "a b", "--json"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("-P|-m|deploy|status|a b|--json|", "", 7)
