"""Half-given Kafka security is refused before anything starts, by the name of the variable and without its value."""

import pytest

from deploy.context import read_settings
from models.errors import SettingsError
from streams.kafka import client_options

SASL = {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_USERNAME": "alice", "KAFKA_PASSWORD": "s3cret"}


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"KAFKA_SECURITY_PROTOCOL": "TLS"}, "KAFKA_SECURITY_PROTOCOL"),
        ({"KAFKA_SECURITY_PROTOCOL": "sasl_ssl"}, "KAFKA_SECURITY_PROTOCOL"),
        ({**SASL, "KAFKA_SASL_MECHANISM": "GSSAPI"}, "KAFKA_SASL_MECHANISM"),
        ({**SASL, "KAFKA_USERNAME": ""}, "KAFKA_USERNAME"),
        ({**SASL, "KAFKA_PASSWORD": ""}, "KAFKA_PASSWORD"),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_USERNAME": "alice"}, "KAFKA_PASSWORD"),
        ({"KAFKA_CA_FILE": "ca.pem"}, "KAFKA_CA_FILE"),
        ({"KAFKA_CERTIFICATE_FILE": "c.pem"}, "KAFKA_CERTIFICATE_FILE"),
        ({"KAFKA_KEY_FILE": "c.pem"}, "KAFKA_KEY_FILE"),
    ],
)
def test_what_is_half_given_is_refused_by_name(environ: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=f"environment variable {named}: ") as refused:
        read_settings(None, environ)
    assert "s3cret" not in str(refused.value)


def test_what_is_whole_reaches_the_client_and_no_repr() -> None:
    settings = read_settings(None, {**SASL, "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_BOOTSTRAP_SERVERS": "a:1,b:2"})
    options = client_options(settings)
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert (options["security_protocol"], options["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("alice", "s3cret")
    assert options["ssl_context"].check_hostname
    assert "s3cret" not in repr(settings)


def test_without_security_nothing_is_added() -> None:
    assert client_options(read_settings(None, {})) == {"bootstrap_servers": ["localhost:9092"], "security_protocol": "PLAINTEXT"}
