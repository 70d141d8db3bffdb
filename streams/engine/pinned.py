"""Start-up check: the Faust and aiokafka installed are the ones that were read when the engine was written.

The engine replaces or relies on the code below, private parts included; another version may undo that without a word. After an upgrade:
read what changed, run the fault tests, then write the new numbers here.
"""

import ast
import gc
import hashlib
import inspect
import linecache
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

from models.errors import FatalError

VERSIONS = {"faust-streaming": "0.15.3", "mode-streaming": "0.7.1", "aiokafka": "0.14.0"}
SOURCES = {
    "faust.agents.manager:AgentManager.on_rebalance": "2b7b8f8ea4bcca90",
    "faust.app.base:App.FlowControlQueue": "9451c49351ae3667",
    "faust.app.base:App._consumer_wait_empty": "6bc313c48c064b16",
    "faust.app.base:App._on_partitions_assigned": "de932b7927db85b3",
    "faust.app.base:App._on_partitions_revoked": "d5c895bbe57dc73a",
    "faust.app.base:App._stop_consumer": "55854a5de12c3f52",
    "faust.app.base:App._update_assignment": "39d9f315c1228325",
    "faust.app.base:App.on_rebalance_end": "b7ff69e1e3772f30",
    "faust.app.base:App.on_rebalance_start": "5c1e23de30674082",
    "faust.app.base:App.on_started": "c03627f2dc44a1dd",
    "faust.app.base:App.on_stop": "bfe5a933defb2324",
    "faust.events:Event": "809ef64f981a4d15",
    "faust.streams:Stream._c_aiter": "fa44582a5882e9df",
    "faust.streams:Stream._py_aiter": "3a48ee257a65435b",
    "faust.streams:Stream.events": "c62f4dd3a73fe7aa",
    "faust.streams:Stream.noack": "921a6f5c674d32d4",
    "faust.tables.manager:TableManager": "f6eed12883a36a91",
    "faust.tables.recovery:Recovery._resume_streams": "d986a6710c1aca98",
    "faust.transport.conductor:Conductor": "56ed932b0cf415df",
    "faust.transport.consumer:Consumer": "2a6a37200a4ddc55",
    "faust.transport.consumer:Fetcher": "c922e4ab78d9e296",
    "faust.transport.consumer:ensure_TPset": "2f0ed8a809d8ac6e",
    "faust.transport.drivers.aiokafka:Producer": "d160f20ab8ec007d",
    "faust.transport.drivers.aiokafka:Transport": "966a67907f33524d",
    "faust.types.assignor:PartitionAssignorT": "899f37efa0ac0b14",
    "faust.types.tuples:ConsumerMessage": "5edc45d571eb42a2",
    "mode.utils.queues:FlowControlEvent": "1da8f905ab655e39",
    "mode.utils.queues:FlowControlQueue": "15f15a87fd6de428",
    "mode.utils.queues:ThrowableQueue": "44872deb65478e1f",
    "aiokafka.abc:ConsumerRebalanceListener": "a13cdaf5df2a11d6",
    "aiokafka.admin.client:AIOKafkaAdminClient": "2f4965384183f0b9",
    "aiokafka.client:AIOKafkaClient": "e5e5f42395367a92",
    "aiokafka.cluster:ClusterMetadata": "44cc1a48f1046a0c",
    "aiokafka.conn:AIOKafkaConnection": "ac26ab36fe7cd5b4",
    "aiokafka.conn:collect_hosts": "de96a718373bce1d",
    "aiokafka.conn:create_conn": "673276cbddb4dc7c",
    "aiokafka.consumer.consumer:AIOKafkaConsumer": "f7a5053529dec045",
    "aiokafka.consumer.fetcher:Fetcher": "2b011d9164fa851b",
    "aiokafka.consumer.fetcher:PartitionRecords": "94aa0da0dbec8d1b",
    "aiokafka.consumer.group_coordinator:BaseCoordinator": "e0fbe0d12fe5a4bd",
    "aiokafka.consumer.group_coordinator:CoordinatorGroupRebalance": "20ed95eaf623513c",
    "aiokafka.consumer.group_coordinator:GroupCoordinator": "3cc75f875a239167",
    "aiokafka.consumer.subscription_state:Assignment": "ce6859542c70a3d4",
    "aiokafka.consumer.subscription_state:Subscription": "5e570aaff58e45fd",
    "aiokafka.consumer.subscription_state:SubscriptionState": "387f8a497901966d",
    "aiokafka.consumer.subscription_state:TopicPartitionState": "2b83334afadf6d98",
    "aiokafka.coordinator.protocol:ConsumerProtocol": "2cd20bf167f38dd8",
    "aiokafka.coordinator.protocol:ConsumerProtocolMemberAssignment": "44c63b54117ef65e",
    "aiokafka.coordinator.protocol:ConsumerProtocolMemberMetadata": "7a44758834519a91",
    "aiokafka.producer.message_accumulator:BatchBuilder": "8050802ca7514186",
    "aiokafka.producer.message_accumulator:MessageAccumulator": "562530971ca9bd19",
    "aiokafka.producer.message_accumulator:MessageBatch": "36a7b1dac89d2910",
    "aiokafka.producer.producer:AIOKafkaProducer": "f56c529895670071",
    "aiokafka.producer.sender:Sender": "46ef144176b79ef8",
    "aiokafka.producer.transaction_manager:TransactionManager": "d0932794d69a6780",
    "aiokafka.producer.transaction_manager:TransactionState": "9d89c858aac3111c",
    "aiokafka.protocol.group:LeaveGroupRequest": "48c67e6ea17ff277",
}
"""First 16 hex digits of the SHA-256 of the source of a class or function; compiled parts are held by their versions alone."""


def digest(name: str) -> str:
    """Of "module:qualified name"."""
    module, _, path = name.partition(":")
    found = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return hashlib.sha256(_source(found).encode()).hexdigest()[:16]


def _source(found: Any) -> str:
    """As inspect.getsource, which parses a whole file anew for each class in it."""
    if not inspect.isclass(found):
        return inspect.getsource(found)
    file = inspect.getsourcefile(found) or ""
    start, end = _classes(file)[found.__qualname__]
    return "".join(linecache.getlines(file)[start:end])


@lru_cache(maxsize=4)
def _classes(file: str) -> dict[str, tuple[int, int]]:
    """First line and end of each top-level class of a file.

    Not while garbage is collected: a finalizer that runs in the middle of Python 3.11's ast.parse and parses too (a traceback is enough)
    makes it fail with "AST constructor recursion depth mismatch".
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        nodes = [node for node in ast.parse("".join(linecache.getlines(file))).body if isinstance(node, ast.ClassDef)]
    finally:
        if collecting:
            gc.enable()
    return {node.name: (min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1, node.end_lineno or 0) for node in nodes}


def check() -> None:
    """Raises FatalError naming what differs."""
    other = [f"{name} {have} (read: {read})" for name, read in VERSIONS.items() if (have := version(name)) != read]
    if not other:
        other = [name for name, read in SOURCES.items() if digest(name) != read]
    if other:
        raise FatalError(f"the engine was written against other code: {', '.join(other)}; install requirements.txt as it is pinned")
