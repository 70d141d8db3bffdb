"""Which tests `headrace test` chooses."""

import pytest

from deploy import testing


@pytest.mark.parametrize(
    ("fast", "long", "extra", "expected"),
    [
        (False, False, [], [*testing.SIDE_BY_SIDE]),
        (False, True, ["-x"], ["--long", *testing.SIDE_BY_SIDE, "-x"]),
        (True, False, [], ["-m", testing.NO_SERVERS, "tests/unit", "tests/architecture", *testing.SIDE_BY_SIDE]),
        (True, False, ["tests/unit/test_testing.py::test_x", "-q"], ["-m", testing.NO_SERVERS, "tests/unit/test_testing.py::test_x", "-q"]),
        (
            True,
            False,
            ["-k", "no-such-file"],
            ["-m", testing.NO_SERVERS, "tests/unit", "tests/architecture", *testing.SIDE_BY_SIDE, "-k", "no-such-file"],
        ),
    ],
)
def test_the_caller_may_name_paths_and_else_the_command_does(fast: bool, long: bool, extra: list[str], expected: list[str]) -> None:
    assert testing.choose(fast, long, extra) == expected


@pytest.mark.parametrize(("failing", "code"), [((), 0), (("checks",), 3), (("pytest",), 1), (("checks", "pytest"), 3)])
def test_a_failed_step_fails_the_command_and_hides_no_other(failing: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def checks() -> list[int]:
        ran.append("checks")
        return [0, 3 if "checks" in failing else 0]

    def run_pytest(arguments: list[str]) -> int:
        ran.append("pytest")
        return int("pytest" in failing)

    monkeypatch.setattr(testing, "_checks", checks)
    monkeypatch.setattr(testing, "_pytest", run_pytest)
    assert testing.run() == code
    assert ran == ["checks", "pytest"]


def test_outside_a_clone_the_command_says_so(tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(testing, "ROOT", tmp_path)
    assert testing.run() == 2
    assert "clone of the repository" in capsys.readouterr().err
