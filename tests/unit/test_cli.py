"""The front door answers at once, says what each command does, and turns every mistake of a person into words and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from deploy import runs
from deploy.cli import app
from deploy.context import choose_connection, choose_connections, choose_route, choose_source, duration, read_settings
from deploy.failures import told
from deploy.looks import printable
from deploy.snapshots import difference, sources_of, unexplained
from models.errors import SettingsError, TemporaryError
from models.flow import Flow
from streams.salesforce.runs import Run

COMMANDS = [
    "login", "worker", "subscribe", "receive", "snapshot", "check", "status", "dead-letters", "incidents", "redrive", "adopt",
    "accept-loss", "pause", "resume", "refuse", "refill", "replay", "verify", "quality", "fields", "map", "demo", "bench", "soak", "test",
    "sandbox",
]  # fmt: skip


def headrace(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    command = [sys.executable, "-m", "deploy", *arguments]
    return subprocess.run(command, env={**clean, **environ}, capture_output=True, text=True, timeout=60)


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert all(command in shown.output for command in COMMANDS)
    named = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    assert named | {group.name for group in app.registered_groups} == set(COMMANDS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "sandbox"])
def test_each_commands_help_says_what_it_does_with_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"headrace {command}" in shown.output.split("Example:")[1]


def test_help_loads_none_of_the_house() -> None:
    script = "import sys; from deploy.cli import main\ntry: main()\nfinally: print(*(m for m in sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "deploy.cli" in loaded
    assert not loaded & {"pydantic", "faust", "aiokafka", "aiohttp", "streams", "agents", "deploy.sandbox", "deploy.demo"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["worker", "--no-such-option"],
        ["snapshot"],
        ["snapshot", "acme", "--pause", "--stop"],
        ["snapshot", "acme", "--resume", "--fields", "Email"],
        ["snapshot", "acme", "--via", "soap"],
        ["verify"],
        ["redrive"],
        ["replay", "people"],
        ["pause"],
        ["resume"],
        ["refill"],
        ["subscribe", "--from", "yesterday"],
        ["worker", "unwanted"],
        ["check", "--flow"],
        ["\x1b[31m"],
        ["--"],
        [""],
    ],
)
def test_what_cannot_be_parsed_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    "command", [["worker"], ["subscribe"], ["receive"], ["status"], ["snapshot", "a/b"], ["verify", "a/b"], ["redrive", "x"]]
)
def test_a_missing_flow_file_is_told_in_one_line_without_restarts(command: list[str], tmp_path: Path) -> None:
    done = headrace(*command, "--flow", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "none.yaml: no such file" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_wrong_variables_are_named_without_their_values() -> None:
    done = headrace("worker", HEADRACE_PARTITIONS="hunter2", HEADRACE_INSTALLATION="a/b hunter2", HEADRACE_DRAIN_SECONDS="-1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for name in ("HEADRACE_PARTITIONS", "HEADRACE_INSTALLATION", "HEADRACE_DRAIN_SECONDS"):
        assert name in done.stderr
    assert "hunter2" not in done.stderr


def test_a_kafka_that_is_away_is_told_in_words() -> None:
    done = headrace("dead-letters", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Kafka" in done.stderr or "127.0.0.1:9" in done.stderr


def test_what_a_stranger_wrote_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2Jb\r\n\u202e") == "a·[2Jb···"


def test_an_error_of_ours_ends_with_its_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, told():
        raise TemporaryError("Kafka is away; start it")
    assert end.value.code == 1
    assert capsys.readouterr().err == "headrace: Kafka is away; start it\n"


def test_a_fault_of_our_own_shows_no_secret_and_no_local_variables() -> None:
    script = (
        "from deploy.failures import told\n"
        "def work():\n"
        "    place = 'a-local-variable'\n"
        "    raise RuntimeError('password=hunter2 for x')\n"
        "with told(): work()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "RuntimeError" in done.stderr and "a fault of our own" in done.stderr
    assert "hunter2" not in done.stderr and "a-local-variable" not in done.stderr.replace("place = 'a-local-variable'", "")


def test_sandbox_arguments_reach_its_own_commands_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.sandbox import commands

    got: list[str] = []
    stand_in = typer.Typer()

    @stand_in.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
    def _all(context: typer.Context) -> None:
        got.extend(context.args)

    monkeypatch.setattr(commands, "app", stand_in)
    CliRunner().invoke(app, ["sandbox", "salesforce", "--records", "5", "--help"])
    assert got == ["salesforce", "--records", "5", "--help"]


FLOW = Flow.model_validate(
    {
        "connections": {
            "acme": {"type": "salesforce", "auth": {"flow": "client_credentials", "client_id": "x", "client_secret": "y"}},
            "forms": {"type": "webhook", "secrets": ["x"]},
        },
        "targets": {"warehouse": {"type": "postgres"}},
        "routes": {"people": {"from": ["acme/Contact"], "to": "warehouse", "map": "person"}},
    }
)


def test_the_only_connection_need_not_be_named_and_a_wrong_name_gets_a_hint() -> None:
    assert choose_connection(FLOW, None) == choose_connection(FLOW, "acme") == "acme"
    with pytest.raises(SettingsError, match=r"did you mean acme\?"):
        choose_connection(FLOW, "akme")
    with pytest.raises(SettingsError, match="no Salesforce connection"):
        choose_connection(FLOW, "forms")
    two = FLOW.model_copy(update={"connections": {**FLOW.connections, "other": FLOW.connections["acme"]}})
    with pytest.raises(SettingsError, match="acme, other"):
        choose_connection(two, None)
    assert choose_connections(two, "all") == ["acme", "other"]
    assert choose_connections(FLOW, None) == ["acme"]
    with pytest.raises(SettingsError, match="name one"):
        choose_connections(two, None)


def test_sources_and_routes_that_are_not_in_the_flow_get_a_hint() -> None:
    assert choose_source(FLOW, "acme/Contact") == "acme/Contact"
    assert choose_route(FLOW, "people") == "people"
    with pytest.raises(SettingsError, match=r"did you mean acme/Contact\?"):
        choose_source(FLOW, "acme/contact")
    with pytest.raises(SettingsError, match=r"did you mean people\?"):
        choose_route(FLOW, "peple")


def test_a_connection_stands_for_all_its_sources_and_each_is_read_once() -> None:
    assert sources_of(FLOW, ["acme", "acme/Contact"]) == ["acme/Contact"]
    for named, hint in (
        (["akme"], "did you mean acme"),
        (["acme/Contakt"], "did you mean acme/Contact"),
        (["forms"], "no Salesforce"),
        ([""], "there is no"),
    ):
        with pytest.raises(SettingsError, match=hint):
            sources_of(FLOW, named)


@pytest.mark.parametrize(
    ("counted", "changed", "said", "missing"),
    [
        (-1, -1, "", 0),
        (100, -1, "", 0),
        (103, 3, "COUNT() now says 103, 3 more, while 3 were made", 0),
        (97, 9, "97, 3 fewer, while 9", 0),
        (97, -1, "Salesforce does not tell", 0),
        (97, 1, "only 1 were made, deleted or changed meanwhile", 2),
        (150, 0, "50 more, and only 0", 50),
    ],
)
def test_another_count_is_said_with_what_it_means(counted: int, changed: int, said: str, missing: int) -> None:
    run = Run("r", "acme/Contact", state="done", rows=100, counted=counted, changed=changed)
    assert said in difference(run)
    assert bool(difference(run)) == bool(said)
    assert unexplained(run) == missing


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), (" 2d ", 172800), ("250ms", 0.25)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "0", "5 weeks", "1e9", "9" * 50, "٣s", "nan", "5s; rm"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        duration(text)


def test_the_flow_option_stands_before_the_variable() -> None:
    assert read_settings(Path("a.yaml"), {"HEADRACE_FLOW": "b.yaml"}).flow == Path("a.yaml")
    assert read_settings(None, {"HEADRACE_FLOW": "b.yaml"}).flow == Path("b.yaml")


def test_adopt_refuses_what_is_no_target_and_what_keeps_no_owner(tmp_path: Path) -> None:
    flow = tmp_path / "flow.yaml"
    flow.write_text(
        "connections:\n"
        "  acme: {type: salesforce, url: 'http://localhost:1', auth: {flow: client_credentials, client_id: a, client_secret: b}}\n"
        "targets: {marketing: {type: iterable, api_key: made-up}}\n"
        "routes: {people: {from: acme/Contact, to: marketing, map: person}}\n"
    )
    for name, word in (("marketting", "did you mean marketing"), ("marketing", "no owner")):
        with pytest.raises(SettingsError, match=word):
            runs.adopt(flow, name)
