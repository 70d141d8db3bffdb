"""TLS, passwords and client certificates, with a broker that demands them; who is refused hears why, and no secret is told."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.kafka import Kafka
from deploy.local.process import free_port
from models.errors import FatalError, HeadraceError, SettingsError, TemporaryError
from models.flow import Flow
from models.settings import Settings
from streams.consume import read_all
from streams.engine.stage import Output
from streams.kafka import client_options
from streams.lag import LagWatch
from streams.publish import TransactionalPublisher, send
from streams.topics import ensure
from tests.support.broker import settings_for, topics
from tests.support.certificates import Authority
from tests.support.workers import bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PASSWORD = "gh-Sesam-4711"
KEY_PASSWORD = "Kn0tted-key"
PROPERTIES = """
listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller}},SECURE://localhost:{secure},MUTUAL://localhost:{mutual},CLEAR://localhost:{clear}
advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},SECURE://localhost:{secure},MUTUAL://localhost:{mutual},CLEAR://localhost:{clear}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL,MUTUAL:SSL,CLEAR:SASL_PLAINTEXT
inter.broker.listener.name=PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={authority}
listener.name.mutual.ssl.client.auth=required
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="{password}";
listener.name.secure.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.clear.sasl.enabled.mechanisms=SCRAM-SHA-256
listener.name.clear.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


@dataclass
class Secured:
    """A broker with three guarded listeners, and what opens them."""

    authority: Path
    stranger: Path
    certificate: tuple[Path, Path]
    secure: str
    mutual: str
    clear: str

    def sasl(self, mechanism: str, **more: Any) -> dict[str, Any]:
        """Settings for the listener with TLS and passwords."""
        return {
            "kafka": self.secure,
            "kafka_security": "SASL_SSL",
            "kafka_sasl_mechanism": mechanism,
            "kafka_username": "alice",
            "kafka_password": PASSWORD,
            "kafka_ca": str(self.authority),
            **more,
        }

    def tls(self, **more: Any) -> dict[str, Any]:
        """Settings for the listener that asks for a certificate."""
        certificate, key = self.certificate
        own = {"kafka_certificate": str(certificate), "kafka_key": str(key), "kafka_key_password": KEY_PASSWORD}
        return {"kafka": self.mutual, "kafka_security": "SSL", "kafka_ca": str(self.authority), **own, **more}

    def way(self, name: str) -> dict[str, Any]:
        """Settings that are let in, by the name of a way."""
        if name == "mTLS":
            return self.tls()
        if name == "SASL_PLAINTEXT":
            return self.sasl("SCRAM-SHA-256", kafka=self.clear, kafka_security="SASL_PLAINTEXT", kafka_ca=None)
        return self.sasl(name)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    ours, stranger = Authority(folder, "ours"), Authority(folder, "stranger")
    certificate, key = ours.issue("broker")
    keystore = folder / "keystore.pem"
    keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
    ports = {name: free_port() for name in ("secure", "mutual", "clear")}
    kafka = Kafka(
        folder / "kafka",
        heap="256m",
        properties=PROPERTIES.format(**ports, keystore=keystore, authority=ours.certificate, password=PASSWORD),
        users=[f"{mechanism}=[name=alice,password={PASSWORD}]" for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")],
    )
    kafka.start()
    try:
        addresses = {name: f"localhost:{port}" for name, port in ports.items()}
        client = ours.issue("client", KEY_PASSWORD.encode())
        yield Secured(ours.certificate, stranger.certificate, client, **addresses)
    finally:
        kafka.stop()


@pytest.mark.parametrize("way", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "mTLS", "SASL_PLAINTEXT"])
async def test_every_client_is_let_in(broker: Secured, tmp_path: Path, way: str) -> None:
    given = broker.way(way)
    settings = settings_for(given.pop("kafka"), tmp_path, partitions=2, **given)
    out = f"{settings.installation}.out"
    async with topics(settings, [out]):  # the admin client
        await send(settings, [Output(out, b"k", b"1")])
        async with TransactionalPublisher(settings, f"{settings.installation}.x") as whole:
            await whole.send([Output(out, b"k", b"2")])
        assert [r.value for r in await read_all(settings, out)] == [b"1", b"2"]
        lag = LagWatch(settings, Flow(connections={}, targets={}, routes={}))
        try:
            assert await lag.read() == []
        finally:
            await lag.close()


async def test_a_worker_goes_its_whole_way_over_tls_and_passwords_and_tells_none(broker: Secured, tmp_path: Path) -> None:
    given = broker.way("SCRAM-SHA-512")
    async with bench(given.pop("kafka"), tmp_path, **given) as b:
        await b.send(300)
        worker = await b.start(**given)
        await b.exactly(300)
        assert await worker.stop() == 0
        assert PASSWORD not in worker.log.read_text()
        assert b.stored("state") == await b.changelog()


REFUSED = [
    ("PLAIN", {"kafka_password": "wr0ng-word"}, FatalError, r"refuses the user 'alice': compare KAFKA_USERNAME, KAFKA_PASSWORD"),
    ("SCRAM-SHA-256", {"kafka_password": "wr0ng-word"}, FatalError, r"refuses the user 'alice'"),
    ("SCRAM-SHA-512", {"kafka_username": "bob"}, FatalError, r"refuses the user 'bob'"),
    ("SASL_PLAINTEXT", {"kafka_sasl_mechanism": "PLAIN"}, FatalError, r"does not take PLAIN"),
    ("PLAIN", {"kafka_ca": "stranger"}, FatalError, r"not to be trusted .*KAFKA_CA_FILE"),
    ("PLAIN", {"kafka_ca": None}, FatalError, r"not to be trusted .*KAFKA_CA_FILE"),
    ("mTLS", {"kafka_certificate": None, "kafka_key": None}, HeadraceError, r"KAFKA_CERTIFICATE_FILE|speaks SSL"),
    ("PLAIN", {"kafka_security": "SSL"}, HeadraceError, r"speaks SSL|TLS"),
    ("PLAIN", {"kafka": "localhost:1"}, TemporaryError, r"localhost:1 cannot be reached"),
]


@pytest.mark.parametrize(("way", "wrong", "kind", "said"), REFUSED)
async def test_who_is_refused_hears_why_and_no_secret(
    broker: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str, wrong: dict[str, Any], kind: type[Exception], said: str
) -> None:
    caplog.set_level(logging.DEBUG)
    given = {**broker.way(way), **wrong}
    if given.get("kafka_ca") == "stranger":
        given["kafka_ca"] = str(broker.stranger)
    settings = Settings(installation="t-refused", state=tmp_path, **given)
    with pytest.raises(kind, match=said) as refused:
        await ensure(settings, [])
    told = f"{refused.value!r} {refused.value} {settings!r} {caplog.text}"
    assert not [secret for secret in (PASSWORD, KEY_PASSWORD, "wr0ng-word") if secret in told]


async def test_a_worker_with_a_wrong_password_ends_by_saying_so(broker: Secured, tmp_path: Path) -> None:
    given = broker.way("SCRAM-SHA-256")
    async with bench(given.pop("kafka"), tmp_path, **given) as b:
        worker = await b.start(**{**given, "kafka_password": "wr0ng-word"})
        assert await worker.code() == 70
        log = worker.log.read_text()
        assert "refuses the user 'alice'" in log
        assert "wr0ng-word" not in log


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    certificate, key = authority.issue("client", b"secret-of-key")
    other, _ = authority.issue("other")
    (tmp_path / "rubbish.pem").write_text("rubbish")

    def options(**given: Any) -> None:
        client_options(Settings(kafka_security="SSL", **given))

    for name in ("missing.pem", "rubbish.pem"):
        with pytest.raises(SettingsError, match=rf"KAFKA_CA_FILE .*{name}.* PEM file"):
            options(kafka_ca=tmp_path / name)
        with pytest.raises(SettingsError, match=rf"KAFKA_CERTIFICATE_FILE .*{name}"):
            options(kafka_certificate=tmp_path / name)
    for given in (
        {"kafka_key": key},
        {"kafka_key": key, "kafka_key_password": "wrong"},
        {"kafka_certificate": other, "kafka_key": key},
        {},
    ):
        with pytest.raises(SettingsError, match="belong together, and KAFKA_KEY_PASSWORD") as refused:
            options(**{"kafka_certificate": certificate, **given})
        assert "secret-of-key" not in str(refused.value)
    options(kafka_certificate=certificate, kafka_key=key, kafka_key_password="secret-of-key")
