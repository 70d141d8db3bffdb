"""A target is found by its file name, and a wrong name or option is told in words."""

import shutil
from pathlib import Path

import pytest
from pydantic import SecretStr

import agents.targets
from agents.targets import find_target, known_types, make_target
from models.errors import SettingsError
from models.flow import Target
from tests.support import toy_target


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A second folder of the registry."""
    monkeypatch.setattr(agents.targets, "__path__", [*agents.targets.__path__, str(tmp_path)])
    return tmp_path


def test_a_file_in_the_folder_is_a_target(folder: Path) -> None:
    shutil.copy(str(toy_target.__file__), folder / "toybox.py")
    assert "toybox" in known_types()
    made = make_target("mine", Target.model_validate({"type": "toybox", "colour": "blue"}), "unit")
    assert type(made).__name__ == "Target"
    assert vars(made)["options"].colour == "blue"


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'mysql'.*iterable, postgres"):
        find_target("mysql")


@pytest.mark.parametrize("name", ["base", "", "..base", "postgres.Target", "os"])
def test_only_targets_are_targets(name: str) -> None:
    with pytest.raises(SettingsError):
        find_target(name)


def test_a_file_without_a_target_is_told(folder: Path) -> None:
    (folder / "empty_one.py").write_text("X = 1\n")
    with pytest.raises(SettingsError, match="no class named Target"):
        find_target("empty_one")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "postgres"}, "dsn"),
        ({"type": "postgres", "dsn": "x", "shema": "y"}, "shema"),
        ({"type": "iterable", "api_key": "SECRET-VALUE", "base_url": "ftp://x"}, "base_url"),
        ({"type": "iterable", "api_key": ["SECRET-VALUE"]}, "api_key"),
    ],
)
def test_a_wrong_option_is_named_without_its_value(options: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        make_target("mine", Target.model_validate(options), "unit")
    assert "SECRET-VALUE" not in str(caught.value)


def test_secrets_of_options_do_not_show() -> None:
    options = find_target("postgres").options_class.model_validate({"dsn": "postgresql://u:SECRET-VALUE@h/d"})
    assert "SECRET-VALUE" not in repr(options)
    assert isinstance(options.model_dump()["dsn"], SecretStr)
