"""The flow file tells every mistake with line and remedy, keeps secrets, and survives whatever is in the file."""

import os
from pathlib import Path

import pytest

from models.flow import Salesforce, channel_sobject, sobject_channel
from streams.flow_file import FlowError, load_flow, read_flow
from streams.yaml_lines import MAX_BYTES, Hidden

GOOD = """\
connections:
  acme: {type: salesforce, auth: {flow: jwt, client_id: ${SF_CLIENT_ID}, username: ops@acme.example, key_file: keys/acme.pem}}
  forms:
    type: webhook
    secrets: ["${FORMS_SECRET}"]
targets:
  warehouse: {type: postgres, dsn: ${DATABASE_URL}, schema: crm}
routes:
  contacts: {from: acme/Contact, to: warehouse, map: person}
"""
ORG = "type: salesforce"
UNIQUE = "map: person, quality: [duplicates], unique:"
AGAIN = "{from: acme/Contact, to: warehouse, map: person}"
ONE = "/data/ContactChangeEvent"
ENVIRON = {"SF_CLIENT_ID": "the-client", "DATABASE_URL": "postgresql://u:hunter2@h/d", "FORMS_SECRET": "whsec_hunter2"}


def mistakes(tmp_path: Path, text: str | bytes, environ: dict[str, str] = ENVIRON) -> list[tuple[int, str, str]]:
    path = tmp_path / "flow.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load_flow(path, environ)
    except FlowError as error:
        assert all(mistake.file == str(path) for mistake in error.mistakes)
        return [(mistake.line, mistake.message, mistake.remedy) for mistake in error.mistakes]
    return []


def test_the_designs_example_loads_and_variables_work_inside_braces(tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(GOOD)
    flow = load_flow(path, ENVIRON)
    acme = flow.connections["acme"]
    assert isinstance(acme, Salesforce) and acme.auth.client_id == "the-client"
    assert flow.targets["warehouse"].options == {"dsn": ENVIRON["DATABASE_URL"], "schema": "crm"}
    assert flow.routes["contacts"].sources == ("acme/Contact",)
    assert flow.folder == str(tmp_path)


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86_400), ("7d", 604_800), ("15m", 900), ("90s", 90), ("3600", 3600), ("''", None)])
def test_how_often_a_route_is_verified_is_a_length_of_time(tmp_path: Path, text: str, seconds: float | None) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(GOOD.replace("map: person", f"map: person, verify: {text}"))
    if seconds is not None:
        assert load_flow(path, ENVIRON).routes["contacts"].verify == seconds
    else:
        assert "this is no length of time" in mistakes(tmp_path, path.read_text())[0][1]


@pytest.mark.parametrize("text", ["5s", "-1h", "24", "1e9d", "[1h]", "{}", "true", "24h0m", "٣h", "9999999999h", "never", "-.inf", ".nan"])
def test_a_strange_interval_of_verifying_is_told(tmp_path: Path, text: str) -> None:
    [(line, message, _)] = mistakes(tmp_path, GOOD.replace("map: person", f"map: person, verify: {text}"))
    assert (line, "verify" in message) == (9, True), message


def test_what_keeps_no_records_is_not_compared(tmp_path: Path) -> None:
    told = mistakes(tmp_path, GOOD.replace("from: acme/Contact", "from: acme/Paid__e").replace("map: person", f"{UNIQUE} email"))
    assert any("never kept" in message and remedy == "leave it out" for _, message, remedy in told), told


def test_what_keeps_no_records_is_not_verified(tmp_path: Path) -> None:
    for source in ("forms", "acme/Paid__e"):
        told = mistakes(tmp_path, GOOD.replace("from: acme/Contact", f"from: {source}").replace("map: person", "map: person, verify: 24h"))
        assert any("keeps none" in message and remedy == "leave it out" for _, message, remedy in told), told


@pytest.mark.parametrize(
    ("more", "url", "version"),
    [
        ("", "https://login.salesforce.com", "67.0"),
        (", url: https://test.salesforce.com", "https://test.salesforce.com", "67.0"),
        (", url: https://acme--uat.sandbox.my.salesforce.com, version: v64.0", "https://acme--uat.sandbox.my.salesforce.com", "64.0"),
    ],
)
def test_production_sandbox_orgs_and_versions_are_settings(tmp_path: Path, more: str, url: str, version: str) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(GOOD.replace(ORG, ORG + more, 1))
    acme = load_flow(path, ENVIRON).connections["acme"]
    assert isinstance(acme, Salesforce) and (acme.url, acme.version) == (url, version)


def test_no_value_of_a_variable_shows_in_repr(tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(GOOD)
    assert "hunter2" not in repr(load_flow(path, ENVIRON))


def test_no_value_of_a_variable_shows_in_a_message(tmp_path: Path) -> None:
    text = GOOD.replace("type: postgres", "type: postgres, type: ${DATABASE_URL}").replace(
        "map: person", "map: person, fetch: ${FORMS_SECRET}"
    )
    assert "hunter2" not in str(mistakes(tmp_path, text))


def test_what_a_variable_holds_never_becomes_structure(tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(GOOD)
    hostile = "x}\nroutes: {evil: {from: acme/User, to: warehouse, map: person}}\n#${SF_CLIENT_ID}"
    flow = load_flow(path, {**ENVIRON, "DATABASE_URL": hostile})
    assert flow.targets["warehouse"].options["dsn"] == hostile
    assert list(flow.routes) == ["contacts"]


def test_a_variable_may_be_part_of_a_value_and_missing_ones_are_named_once_each(tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(GOOD.replace("${DATABASE_URL}", "${HOST}/x${NAME}"))
    flow = load_flow(path, {**ENVIRON, "HOST": "h", "NAME": "n"})
    dsn = flow.targets["warehouse"].options["dsn"]
    assert dsn == "h/xn" and isinstance(dsn, Hidden)
    found = mistakes(tmp_path, GOOD, {"DATABASE_URL": ""})
    assert [(line, message) for line, message, _ in found] == [
        (2, "the environment variable SF_CLIENT_ID is not set"),
        (5, "the environment variable FORMS_SECRET is not set"),
        (7, "the environment variable DATABASE_URL is empty"),
    ]


def test_what_is_polled_is_not_subscribed_to_and_needs_no_channel(tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    two = "from: [acme/Contact, acme/Contract, acme/Lead], to: warehouse, map: x.yaml"
    org = f"{ORG}, poll: {{Contract: 5m, Lead: 30}}, poll_instead: 90s, channels: [{ONE}]"
    path.write_text(GOOD.replace("from: acme/Contact, to: warehouse, map: person", two).replace(ORG, org))
    flow = load_flow(path, ENVIRON)
    acme = flow.connections["acme"]
    assert isinstance(acme, Salesforce) and (acme.poll, acme.poll_instead) == ({"Contract": 300.0, "Lead": 30.0}, 90.0)
    assert flow.channels("acme") == (ONE,)


def test_variables_in_comments_are_not_asked_for(tmp_path: Path) -> None:
    assert mistakes(tmp_path, GOOD + "# ${NOT_SET}\n") == []


@pytest.mark.parametrize(
    ("old", "new", "line", "message", "remedy"),
    [
        ("map: person", "map: person, filter: x", 9, "route contacts knows no filter", "known: from"),
        ("map: person", "map: person, quallity: [types]", 9, "knows no quallity", "did you mean quality?"),
        ("from: acme/Contact", "sources: [acme/Contact]", 9, "knows no sources", "did you mean from?"),
        ("map: person", "map: [person]", 9, "map must be text", "map: a word"),
        ("map: person", "map: 12", 9, "map must be text", 'map: "12"'),
        (", map: person", "", 9, "route contacts has no map", "add `map"),
        ("map: person", "map: person, fetch: qurey", 9, "fetch cannot be qurey", "did you mean query?"),
        ("map: person", "map: person, on_delete: drop", 9, "on_delete cannot be drop", "known: tombstone, delete, mark, ignore"),
        ("map: person", "map: person, quality: required", 9, "quality must be a list", "[a, b]"),
        ("map: person", "map: person, quality: [requird]", 9, "requird", "did you mean required?"),
        ("map: person", "map: person, unique: email", 9, "needs the stage duplicates", "quality: [required, duplicates]"),
        ("map: person", "map: person, quality: [types], unique: email", 9, "needs the stage", "quality: [types, duplicates]"),
        ("map: person", f"{UNIQUE} email, on_delete: ignore", 9, "ignore keeps what was deleted", "on_delete: tombstone"),
        ("map: person", f"{UNIQUE} [email]", 9, "unique must be text", "unique: a word"),
        ("map: person", f"{UNIQUE} ''", 9, "unique: string should have at least 1", "change"),
        ("map: person", f"{UNIQUE} {'x' * 101}", 9, "unique: string should have at most 100", "change"),
        ("to: warehouse", "to: warehose", 9, "there is no target warehose", "did you mean warehouse?"),
        ("acme/Contact", "acne/Contact", 9, "there is no connection acne", "did you mean acme?"),
        ("acme/Contact", "acme", 9, "names no sObject", "acme/Contact"),
        ("acme/Contact", "acme/Con tact", 9, "no sObject's name", "API name"),
        ("acme/Contact", "forms/Contact", 9, "has no sObjects", "from: forms"),
        ("acme/Contact", "[]", 9, "from is empty", "at least one"),
        ("acme/Contact", "[acme/Contact, acme/Contact]", 9, "names acme/Contact twice", "remove"),
        ("acme/Contact, to: warehouse", "forms, to: warehouse, fetch: query", 9, "forms is a webhook", "fetch: event"),
        ("  contacts:", "  contacts/new:", 9, "'contacts/new' is no name", "a letter first"),
        ("  warehouse:", "  1warehouse:", 7, "'1warehouse' is no name", "a letter first"),
        ("type: salesforce", "type: salesforze", 2, "cannot be of type salesforze", "did you mean salesforce?"),
        ("type: salesforce, ", "", 2, "connection acme has no type", "add `type"),
        ("type: salesforce", "type: salesforce, version: 67.0", 2, "version must be text", 'version: "67.0"'),
        ("type: salesforce", 'type: salesforce, version: "67"', 2, "version cannot be 67", "must match"),
        ("type: salesforce", "type: salesforce, silence: soon", 2, "silence must be a number", "silence: 10.0"),
        ("type: salesforce", "type: salesforce, silence: -1", 2, "silence: input should be greater than 0", "change"),
        ("type: salesforce", "type: salesforce, url: acme.my.salesforce.com", 2, "no address of an org", "https://"),
        (ORG, f"{ORG}, poll: {{Contact: soon}}", 2, "Contact must be a number", "Contact: 10.0"),
        (ORG, f"{ORG}, poll: {{Contact: 100ms}}", 2, "Contact must be a number", "Contact: 10.0"),
        (ORG, f"{ORG}, poll: {{Contact: 0.1s}}", 2, "Contact: input should be greater than or equal to 1", "change"),
        (ORG, f"{ORG}, poll: [Contact]", 2, "poll must be a mapping", "{key: value}"),
        (ORG, f"{ORG}, poll: {{Contcat: 60s}}", 2, "polls Contcat, which no route reads", "did you mean Contact?"),
        (ORG, f"{ORG}, poll: {{Contact: 60s}}, channels: [{ONE}]", 2, "would come twice", "or remove the poll"),
        (ORG, f"{ORG}, poll_instead: 2d", 2, "poll_instead must be a number", "poll_instead: 10.0"),
        ("flow: jwt", "flow: saml", 2, "flow cannot be saml", "known: jwt, client_credentials, web_server, password"),
        ("flow: jwt", "flow: pasword", 2, "flow cannot be pasword", "did you mean password?"),
        ("flow: jwt", "flow: password, client_secret: x", 2, "the login flow password needs password", "add `password"),
        ("flow: jwt", "flow: password, password: x", 2, "the login flow password needs client_secret", "add `client_secret"),
        ("flow: jwt", "flow: web_server, callback: https://x/y", 2, "callback cannot be https://x/y", "localhost"),
        ("flow: jwt", "flow: jwt, lifetime: 5", 2, "lifetime: input should be greater than or equal to 60", "change"),
        ("flow: jwt", "flow: jwt, refresh_tokn: x", 2, "knows no refresh_tokn", "did you mean refresh_token?"),
        (ORG, f'{ORG}, version: "v30.0"', 2, "Salesforce retired its API v30.0", "leave version out"),
        (ORG, f"{ORG}, url: https://a--b.sandbox.lightning.force.com", 2, "address of the pages", "https://a--b.sandbox.my.sales"),
        (ORG, f"{ORG}, url: http://acme.my.salesforce.com", 2, "without encryption", "https://acme.my.salesforce.com"),
        (ORG, f"{ORG}, url: https://user@acme.my.salesforce.com", 2, "no address of an org", "https://"),
        ("flow: jwt", "flow: client_credentials", 2, "needs client_secret", "client_secret"),
        (", key_file: keys/acme.pem", "", 2, "needs key_file", "key_file"),
        ("username:", "usrname:", 2, "auth knows no usrname", "did you mean username?"),
        (ORG, f"{ORG}, channels: [/data/ChangeEvents, {ONE}]", 2, "subscribed on two channels", "remove"),
        (ORG, f"{ORG}, channels: [{ONE}, {ONE}]", 2, "subscribed twice", "remove"),
        ("type: salesforce", "type: salesforce, channels: [/topic/Contact]", 2, "no channel of changes", "/data/ChangeEvents"),
        (ORG, f"{ORG}, channels: [/data/A__chn, /data/B__chn]", 2, "both carry several sObjects", "say what is read from each"),
        (ORG, f"{ORG}, channels: {{/data/A__chn: [Contact], /data/B__chn: [Lead, Contact]}}", 2, "Contact would be subscribed", "take"),
        (ORG, f"{ORG}, channels: {{/data/A__chn: [Contact], {ONE}: }}", 2, "Contact would be subscribed on two", "out of one"),
        (ORG, f"{ORG}, channels: {{/data/A__chn: [Lead]}}", 9, "no channel of acme carries Contact", ONE),
        (ORG, f"{ORG}, channels: [/event/Paid__e]", 2, "no channel of changes", "remove it: a route"),
        (ORG, f"{ORG}, channels: [/event/A__chn]", 2, "must name platform events", "/event/A__chn: [Paid__e"),
        (ORG, f"{ORG}, channels: {{/event/A__chn: [Paid__e, Lead]}}", 2, "must name platform events", "write"),
        (ORG, f"{ORG}, channels: {{/event/A__chn: [A__e], /event/B__chn: [A__e]}}", 2, "A__e would come by two channels", "take A__e out"),
        (ORG, f"{ORG}, channels: {{/data/A__chn: [Contact, A__e]}}", 2, "A__e is a platform event", "/event/<name>__chn"),
        (ORG, f"{ORG}, page: 9", 2, "page: input should be greater than or equal to 10", ""),
        (ORG, f"{ORG}, page: many", 2, "page", "write"),
        (ORG, f"{ORG}, page: 2001", 2, "page: input should be less than or equal to 2000", ""),
        (ORG, f"{ORG}, channels: 5", 2, "channels must be", "write"),
        (ORG, f"{ORG}, channels: []", 2, "channels", ""),
        ("from: acme/Contact", "from: acme/Paid__e, fetch: query", 9, "a platform event, which is never kept", "fetch: event"),
        (ORG, f"{ORG}, channels: [/data/Plan__ChangeEvent]", 9, "no channel of acme carries Contact", ONE),
        ('secrets: ["${FORMS_SECRET}"]', "secrets: []", 5, "secrets is empty", "at least one"),
        ("schema: crm", "schema: ${no-name}", 7, "no name of a variable", "${NAME}"),
        ("routes:", "route:", 8, "the file knows no route", "did you mean routes?"),
        ("routes:", "routes:\n  contacts: {from: acme/Lead}", 10, "a second time (first in line 9)", "remove"),
        ("map: person}", f"map: person}}\n  again: {AGAIN}", 10, "both write acme/Contact", "object:"),
        ("map: person}", "map: person}\n  again: nothing", 10, "route again must be a mapping", "key: value"),
        ("schema: crm", "${SCHEMA}: crm", 7, "a key is not a plain word", "plain word"),
        ("schema: crm", "schema: !!python/object/apply:os.system [rm]", 7, "the tag", "remove the tag"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_line_and_its_remedy(tmp_path: Path, old: str, new: str, line: int, message: str, remedy: str) -> None:
    assert old in GOOD
    found = mistakes(tmp_path, GOOD.replace(old, new, 1))
    assert any(at == line and message in what and remedy in how for at, what, how in found), found


def test_all_mistakes_are_told_at_once_and_what_follows_from_one_is_not_told_again(tmp_path: Path) -> None:
    text = GOOD.replace("flow: jwt", "flow: jwd").replace("to: warehouse", "to: warehose").replace("schema: crm", "schema: ${NONE}")
    assert [line for line, _, _ in mistakes(tmp_path, text)] == [2, 7, 9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("{}", "is empty"),
        ("[]", "is not a mapping"),
        ("42", "is not a mapping"),
        ("connections:\n\tacme: 1\n", "a tab where YAML wants spaces"),
        ("a: b: c", "is not YAML"),
        ("a: [1, 2", "is not YAML"),
        ("a: 1\n---\nb: 2\n", "a second document"),
        ("a: *nowhere", "undefined alias"),
        ("a: &a [*a]", "holds itself"),
        ("[" * 100_000, "nested too deeply"),
        ("\x00", "is not YAML"),
        (b"connections: \xff\xfe", "is not UTF-8"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "is not YAML"),
        ("a: \ue000\ue000X\ue001", "private-use"),
        ("a: x\n" + "#" * MAX_BYTES, "is larger than"),
        ("connections: 1\ntargets: []\nroutes: ~", "holds no names"),
        ("connections: {a: ~}\ntargets: {b: 3}\nroutes: {c: []}", "must be a mapping"),
        ("connections: {'': {}}\ntargets: {b: {}}\nroutes: {1: {}}", "is no name"),
        ("connections: {a: {type: [salesforce]}}\ntargets: {b: {type: {}}}\nroutes: {c: {from: [[1]], to: [], map: {}}}", "type"),
        ("? {a: b}\n: 1", "not a plain word"),
    ],
)
def test_a_file_that_is_no_flow_is_refused_in_words(tmp_path: Path, text: str | bytes, message: str) -> None:
    found = mistakes(tmp_path, text)
    assert any(message in what for _, what, _ in found), found


def test_a_bomb_of_aliases_is_stopped(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert any("more than" in what for _, what, _ in mistakes(tmp_path, "\n".join(lines)))


def test_a_folder_a_missing_and_an_unreadable_file_are_told(tmp_path: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(FlowError) as error:
            load_flow(path, {})
        return str(error.value)

    assert "is a folder" in told(tmp_path)
    assert "no such file" in told(tmp_path / "none.yaml")
    assert "cannot be read" in told(tmp_path / ("x" * 5000))
    if os.geteuid() != 0:  # root reads everything
        (tmp_path / "shut.yaml").touch(mode=0)
        assert "cannot be read" in told(tmp_path / "shut.yaml")


def test_channels_are_a_list_or_say_what_is_read_from_each(tmp_path: Path) -> None:
    for given, known in (
        (f"[{ONE}]", {ONE: ()}),
        ("{/data/A__chn: [Contact], /data/LeadChangeEvent: }", {"/data/A__chn": ("Contact",), "/data/LeadChangeEvent": ()}),
    ):
        path = tmp_path / "flow.yaml"
        path.write_text(GOOD.replace(ORG, f"{ORG}, channels: {given}", 1))
        acme = load_flow(path, ENVIRON).connections["acme"]
        assert isinstance(acme, Salesforce) and acme.channels == known
    assert [line for line, _, _ in mistakes(tmp_path, GOOD.replace(ORG, f"{ORG}, canary: {{event: Canary__e, budgt: 5s}}", 1))] == [2]


RECORD = "record: Canary__c/a00Qx0000000001AAA"


@pytest.mark.parametrize(
    ("canary", "channels", "message"),
    [
        ("event: Canary__e", None, None),
        (f"{RECORD}, field: Beat__c", None, None),
        (f"{RECORD}, field: Beat__c", "{/data/A__chn: [Contact, Lead, Canary__c]}", None),
        (f"{RECORD}, field: Beat__c", "{/data/A__chn: [Contact, Lead]}", "no channel that is subscribed to brings it"),
        (f"{RECORD}, field: Beat__c", f"[{ONE}]", "no channel that is subscribed to brings it"),
        ("event: Contact", None, "event cannot be Contact"),
        (f"event: Canary__e, {RECORD}, field: Beat__c", None, "an event (Canary__e), or a record"),
        (RECORD, None, "an event (Canary__e), or a record"),
        ("field: Beat__c", None, "an event (Canary__e), or a record"),
        ("event: Canary__e, field: Beat__c", None, "an event (Canary__e), or a record"),
        ("every: 5s", None, "an event (Canary__e), or a record"),
        ("record: Canary__c/1' OR Id != null, field: Beat__c", None, "record cannot be"),
        ("record: a00Qx0000000001AAA, field: Beat__c", None, "record cannot be"),
        ("record: Contact/003Qx0000000001AAA, field: Title", None, "Contact is the canary's, and a route reads it"),
    ],
)
def test_a_canary_is_an_event_or_a_record_that_no_route_reads_and_a_channel_brings(
    tmp_path: Path, canary: str, channels: str | None, message: str | None
) -> None:
    given = f"{ORG}, canary: {{{canary}}}" + (f", channels: {channels}" if channels else "")
    found = [text for _, text, _ in mistakes(tmp_path, GOOD.replace(ORG, given, 1))]
    assert (len(found), message in found[0]) == (1, True) if message else not found, found


def test_the_parts_without_mistakes_can_be_worked_with(tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(GOOD.replace("flow: jwt", "flow: jwd").replace("schema: crm", "schema: ${NONE}"))
    found = read_flow(path, ENVIRON)
    assert list(found.flow.connections) == ["forms"] and list(found.flow.routes) == ["contacts"]
    assert found.sound("connections", "forms") and found.sound("routes")
    assert not found.sound("targets", "warehouse")


@pytest.mark.parametrize("sobject", ["Contact", "Plan__c"])
def test_channel_and_sobject_name_each_other(sobject: str) -> None:
    assert channel_sobject(sobject_channel(sobject)) == sobject


def test_a_shared_channel_names_no_sobject() -> None:
    assert channel_sobject("/data/ChangeEvents") is None
    assert channel_sobject("/data/Sales__chn") is None
