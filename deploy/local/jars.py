"""Apache Kafka's jars, resolved once per user by jgo and shared by all checkouts.

Writes only below jgo's own cache. A warm start reads one list and asks nobody.
"""

import fcntl
import hashlib
import json
from pathlib import Path

from deploy.local.process import LocalServiceError, Progress

KAFKA_VERSION = "4.1.1"
# kafka-clients is named because without it jgo chose 3.9.1 beside the 4.1.1 broker, which then died with NoSuchMethodError.
COORDINATES = "+".join(
    (
        f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
        f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.25.1",
    )
)


def kafka_jars(progress: Progress) -> list[Path]:
    """The jars of the class path. Raises LocalServiceError when they are not cached and cannot be fetched."""
    from jgo.config import GlobalSettings  # not at the top: a quarter of a second that a run with servers of its own need not pay

    cache = Path(GlobalSettings.load().cache_dir)
    cache.mkdir(parents=True, exist_ok=True)
    listing = cache / f"headrace-{hashlib.sha256(COORDINATES.encode()).hexdigest()[:12]}.json"
    with listing.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _listed(listing) or _resolve(listing, cache, progress)


def _listed(listing: Path) -> list[Path]:
    try:
        jars = [Path(jar) for jar in json.loads(listing.read_text())]
    except (OSError, ValueError):
        return []
    return jars if all(jar.exists() for jar in jars) else []


def _resolve(listing: Path, cache: Path, progress: Progress) -> list[Path]:
    import jgo

    progress(f"fetching Apache Kafka {KAFKA_VERSION} (about 45 jars, once)")
    try:
        folder = Path(jgo.build(COORDINATES, cache_dir=cache).path)
    except (OSError, RuntimeError, ValueError) as error:
        raise LocalServiceError(
            f"Apache Kafka's jars could not be fetched: {error}. "
            "Check the network (jgo reads Maven Central), or set KAFKA_BOOTSTRAP_SERVERS."
        ) from error
    jars = sorted(folder.rglob("*.jar"))
    if not any(jar.name == f"kafka-clients-{KAFKA_VERSION}.jar" for jar in jars):
        raise LocalServiceError(f"jgo made {folder} without kafka-clients {KAFKA_VERSION}. Delete that folder and try again.")
    listing.write_text(json.dumps([str(jar) for jar in jars]))
    return jars
