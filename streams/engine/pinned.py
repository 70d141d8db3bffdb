"""Start-up check: the Faust and aiokafka installed are the ones that were read when the engine was written.

The engine replaces or relies on the code below, private parts included; another version may undo that without a word. After an upgrade:
read what changed, run the fault tests, then write the new numbers here.
"""

import hashlib
import inspect
from importlib import import_module
from importlib.metadata import version

from models.errors import FatalError

VERSIONS = {"faust-streaming": "0.15.3", "mode-streaming": "0.7.1", "aiokafka": "0.14.0"}
SOURCES = {
    "faust.app.base:App._on_partitions_assigned": "de932b7927db85b3",
    "faust.app.base:App._on_partitions_revoked": "d5c895bbe57dc73a",
    "faust.app.base:App._stop_consumer": "55854a5de12c3f52",
    "faust.app.base:App.on_rebalance_end": "b7ff69e1e3772f30",
    "faust.app.base:App.on_started": "c03627f2dc44a1dd",
    "faust.app.base:App.on_stop": "bfe5a933defb2324",
    "faust.streams:Stream.events": "c62f4dd3a73fe7aa",
    "faust.streams:Stream._py_aiter": "3a48ee257a65435b",
    "faust.streams:Stream._c_aiter": "fa44582a5882e9df",
    "faust.tables.manager:TableManager": "f6eed12883a36a91",
    "faust.tables.recovery:Recovery._resume_streams": "d986a6710c1aca98",
    "faust.transport.conductor:Conductor": "56ed932b0cf415df",
    "faust.transport.consumer:Consumer": "2a6a37200a4ddc55",
    "faust.transport.consumer:Fetcher": "c922e4ab78d9e296",
    "faust.transport.drivers.aiokafka:Producer": "d160f20ab8ec007d",
    "aiokafka.consumer.consumer:AIOKafkaConsumer": "f7a5053529dec045",
    "aiokafka.consumer.fetcher:Fetcher": "2b011d9164fa851b",
    "aiokafka.consumer.fetcher:PartitionRecords": "94aa0da0dbec8d1b",
    "aiokafka.consumer.group_coordinator:GroupCoordinator": "3cc75f875a239167",
    "aiokafka.producer.message_accumulator:BatchBuilder": "8050802ca7514186",
    "aiokafka.producer.message_accumulator:MessageAccumulator": "562530971ca9bd19",
    "aiokafka.producer.producer:AIOKafkaProducer": "f56c529895670071",
    "aiokafka.producer.sender:Sender": "46ef144176b79ef8",
    "aiokafka.producer.transaction_manager:TransactionManager": "d0932794d69a6780",
}
"""First 16 hex digits of the SHA-256 of the source of a class or function."""


def digest(name: str) -> str:
    """Of "module:qualified name"."""
    module, _, path = name.partition(":")
    found = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return hashlib.sha256(inspect.getsource(found).encode()).hexdigest()[:16]


def check() -> None:
    """Raises FatalError naming what differs."""
    other = [f"{name} {have} (read: {read})" for name, read in VERSIONS.items() if (have := version(name)) != read]
    if not other:
        other = [name for name, read in SOURCES.items() if digest(name) != read]
    if other:
        raise FatalError(f"the engine was written against other code: {', '.join(other)}; install requirements.txt as it is pinned")
