"""The sandbox's commands as a person types them: a server process of its own, and the commands that find it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.sandbox.commands import app

DATA = Path(__file__).parents[1] / "data" / "sandbox"
ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A sandbox process and the line it printed when it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.sandbox", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    return process, process.stdout.readline()


@pytest.fixture
def salesforce(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    process, line = start("salesforce", "--port", "0", "--records", "100")
    monkeypatch.setenv("HEADRACE_SANDBOX_URL", next(word for word in line.split() if word.startswith("http://localhost:")))
    yield process
    process.kill()
    process.wait()


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_a_sandbox_is_changed_broken_and_fed_from_the_command_line(salesforce: subprocess.Popen[str]) -> None:
    code, output = run("change", "--rate", "200", "--for", "0.5s", "--seed", "3")
    assert (code, output.split(":")[0]) == (0, "100 transactions")
    lines = len((DATA / "cometd-clients.jsonl").read_text().splitlines())
    assert run("emit", str(DATA / "cometd-clients.jsonl"))[1].startswith(f"{lines} events published")
    assert run("fault", "slow", "--times", "3", "--seconds", "0")[1] == "on: slow all (3 times)\n"
    assert "on   slow all (3 times, fired 0)" in run("fault", "--list")[1]
    assert run("fault", "--clear")[1] == "cleared: all faults\n"
    assert "on   " not in run("fault", "--list")[1]
    salesforce.send_signal(signal.SIGTERM)
    assert salesforce.wait(5) == 0


def test_rights_are_taken_and_given_and_rates_told_from_the_command_line(salesforce: subprocess.Popen[str]) -> None:
    code, output = run(
        "user", "reader@example.org", "--hide", "Contact.Email", "--hide", "Account.Industry", "--no-view-all", "--close", "Case"
    )
    assert (code, output.split(": ", 1)[1]) == (0, "without View All Data; hidden: Contact.Email, Account.Industry; closed: Case\n")
    assert run("user", "reader@example.org", "--view-all")[1].split(": ", 1)[1].startswith("with View All Data; hidden: Contact.Email")
    assert run("fault", "drop-events", "--rate", "0.25")[1] == "on: drop-events bus (until cleared)\n"
    assert salesforce.poll() is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("fault", "nonsense"), "no fault named 'nonsense'; there are: "),
        (("fault", "slow", "--variant", "x"), "no variant 'x'"),
        (("fault", "drop-events", "--rate", "2"), "rate is a share above 0 and up to 1"),
        (("user", "reader@example.org", "--hide", "Email"), "write Object.Field"),
        (("user", "reader@example.org", "--hide", "Contact.LastName"), "cannot be hidden"),
        (("user", "nobody"), "expected one such as"),
        (("change", "--for", "soon"), "is no duration"),
        (("change", "--rate", "0"), "greater than or equal to 0.01"),
        (("emit", "no-such-file"), "does not exist"),
        (("fault", "--list", "--target", "nowhere"), "there is no sandbox 'nowhere'"),
        (("fault", "--list", "--url", "http://localhost:9"), "no sandbox answers at http://localhost:9"),
        (("fault", "--list", "--url", "localhost"), "would start with http://"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(salesforce: subprocess.Popen[str], arguments: tuple[str, ...], told: str) -> None:
    code, output = run(*arguments)
    assert code != 0
    assert told in " ".join(output.replace("│", " ").split())


def test_an_iterable_starts_takes_faults_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    process, line = start("iterable", "--port", "0")
    try:
        url = next(word for word in line.split() if word.startswith("http://localhost:"))
        assert run("fault", "down", "--target", "iterable", "--url", url)[1] == "on: down 503 (until cleared)\n"
        monkeypatch.setenv("HEADRACE_SANDBOX_ITERABLE_URL", url)
        assert "on   down" in run("fault", "--list", "--target", "iterable")[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()


def test_a_port_that_is_taken_and_a_wrong_fields_file_are_told(salesforce: subprocess.Popen[str], tmp_path: Path) -> None:
    port = os.environ["HEADRACE_SANDBOX_URL"].rpartition(":")[2]
    taken = subprocess.run(
        [sys.executable, "-m", "deploy.sandbox", "salesforce", "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (taken.returncode, "choose another with --port" in taken.stderr) == (1, True)
    (tmp_path / "f.yaml").write_text("Contact: {Score: double}")
    wrong = subprocess.run(
        [sys.executable, "-m", "deploy.sandbox", "salesforce", "--port", "0", "--fields", str(tmp_path / "f.yaml")],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (wrong.returncode, "Contact.Score" in wrong.stderr) == (1, True)
