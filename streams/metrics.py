"""Every metric of Headrace in one typed list, and nothing else that names one. Labels come from closed sets; never a record id.

headrace_<noun>_<unit>_total|seconds|bytes, base units. Served by streams/health.py from a thread of its own.
"""

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)

# way in
RECEIVED = Counter("headrace_events_received_total", "Events taken from a source into Kafka", ["connection", "sobject", "reason"])
HOOKS = Counter("headrace_hooks_total", "Webhook deliveries by outcome", ["connection", "outcome"])
SUBSCRIBED = Gauge("headrace_subscription_up", "1 while the channel is subscribed and answered", ["connection", "channel"])
LEADING = Gauge("headrace_subscription_leading", "1 in the process that leads the channel", ["connection", "channel"])
LAST_EVENT = Gauge("headrace_last_event_timestamp_seconds", "Commit time of the last event received", ["connection", "channel"])
CANARY = Gauge("headrace_canary_up", "1 while the canary is heard in time by the channel's session", ["connection", "channel"])
CANARIES = Counter("headrace_canaries_total", "Canaries: heard, missed, held back, failed", ["connection", "channel", "outcome"])
LAST_ANSWER = Gauge("headrace_last_answer_timestamp_seconds", "When Salesforce last answered a poll", ["connection", "channel"])
RESUBSCRIBED = Counter("headrace_resubscriptions_total", "Sessions given up and begun anew", ["connection", "channel", "cause"])
LOGINS = Counter("headrace_logins_total", "Logins by outcome", ["connection", "outcome"])
API_CALLS = Counter("headrace_api_calls_total", "REST calls to the source by purpose and outcome", ["connection", "purpose", "outcome"])
API_HELD = Counter("headrace_api_calls_held_total", "REST calls not made, to stay within limits", ["connection", "purpose"])
API_STEP = Gauge("headrace_api_step", "0 normal, 1 no optional re-reads, 2 batch, 3 poll, 4 stop", ["connection"])
API_SHARE = Gauge("headrace_api_share_ratio", "Used of api_share, by all processes, over the rolling day", ["connection"])
API_FORECAST = Gauge("headrace_api_forecast_ratio", "Of the org's calls of a day, used in two hours if it goes on so", ["connection"])
LIMIT_LEFT = Gauge("headrace_limit_remaining", "What is left of a limit of the org, as it last said", ["connection", "limit"])
POLLED = Gauge(
    "headrace_source_polled",
    "How an sObject comes in: 0 by events, 1 by polling, 2 by polling while the event allocation is used up",
    ["connection", "sobject"],
)
LAST_POLL = Gauge("headrace_last_poll_timestamp_seconds", "End of the last round of polling", ["connection", "sobject"])
SNAPSHOT_ROWS = Counter("headrace_snapshot_rows_total", "Rows read by snapshots", ["connection", "sobject"])

# processing
PROCESSED = Counter(
    "headrace_records_processed_total", "Records of in-topics that were merged, by outcome", ["connection", "sobject", "outcome"]
)
FETCHED = Counter("headrace_records_fetched_total", "Ids re-read, by outcome", ["connection", "sobject", "outcome"])
EMITTED = Counter("headrace_writes_emitted_total", "Writes and releases handed to a target's topic", ["route", "target"])
QUALITY = Counter("headrace_quality_records_total", "Records that came to quality: passed, failed, duplicate", ["route", "outcome"])
QUALITY_FAULTS = Counter("headrace_quality_faults_total", "Faults of records that failed, by rule", ["route", "cause"])
CHUNK_SECONDS = Histogram("headrace_chunk_seconds", "From hand-out of a chunk to its commit", ["stage"], buckets=SECONDS)
CHUNK_RECORDS = Counter("headrace_chunk_records_total", "Records in committed chunks", ["stage"])
CHUNKS = Counter("headrace_chunks_total", "Committed chunks", ["stage"])
MAP_VERSION = Gauge("headrace_map_version", "Version of the route's map that is in use", ["route"])
MAP_BROKEN = Gauge("headrace_map_broken", "1 while the map file beside the process is broken, and so not used", ["route"])

# way out
WRITTEN = Counter("headrace_writes_total", "Writes by what became of them", ["target", "route", "outcome"])
CALL_SECONDS = Histogram("headrace_target_call_seconds", "One call to a target", ["target", "outcome"], buckets=SECONDS)
RETRIES = Counter("headrace_retries_total", "Attempts repeated", ["stage", "target"])
WAITED = Counter("headrace_rate_limit_wait_seconds_total", "Time spent waiting for a rate limit", ["target"])
PAUSED = Gauge("headrace_target_paused", "1 while the target or connection is paused", ["target"])
HELD = Gauge("headrace_held", "1 while people, or a gate, pause the route, target or connection", ["what", "name", "cause"])
TOPIC_HELD = Gauge("headrace_topic_held", "1 while the topic waits because people paused what it belongs to", ["topic"])
LATENCY = Histogram(
    "headrace_latency_seconds",
    "From commit in the source, or receipt, to the target's answer",
    ["route", "target", "since"],
    buckets=SECONDS,
)
DEAD = Counter("headrace_dead_letters_total", "Dead letters by cause class", ["stage", "route", "error"])

# repair
OPEN_INCIDENTS = Gauge("headrace_open_incidents", "What is known to be missing and not yet repaired", ["connection", "sobject", "cause"])
INCIDENTS = Counter("headrace_incidents_total", "Incidents: open, closed, failed", ["connection", "sobject", "cause", "outcome"])
WITHHELD = Gauge("headrace_rights_withheld", "1 while the user may not see all that routes read of the sObject", ["connection", "sobject"])

VERIFIED = Gauge("headrace_verified_through_timestamp_seconds", "Until when a route is verified; 0: never", ["route", "target"])
VERIFY_EVERY = Gauge("headrace_verify_interval_seconds", "How often a route shall be verified", ["route"])

# the process
LAG = Gauge("headrace_lag_records", "End offset less committed offset, asked from the broker", ["stage", "topic"])
OLDEST = Gauge("headrace_oldest_unfinished_seconds", "Age of the oldest record not yet committed", ["stage", "topic"])
STARTS = Gauge("headrace_process_restarts_total", "Restarts of this process by its parent", ["role"])
RECOVERED = Counter("headrace_recovered_records_total", "Changelog records applied at recovery", ["table"])
LOST = Gauge("headrace_lost_partitions", "Partitions that wait because their log lost what was not read", ["stage", "topic"])
REBALANCES = Counter("headrace_rebalances_total", "Rebalances of the group seen", [])
REBALANCE_SECONDS = Histogram("headrace_rebalance_seconds", "From partitions revoked to work resumed", [], buckets=SECONDS)
UP = Gauge("headrace_process_info", "1, with the role of the process", ["role", "version"])
DISK_FREE = Gauge("headrace_disk_free_bytes", "Free space where the tables are kept", [])
KAFKA_HOURS = Gauge("headrace_kafka_loss_seconds", "Time until Kafka's retention reaches the oldest unfinished record", ["topic"])
SALESFORCE_HOURS = Gauge(
    "headrace_salesforce_loss_seconds", "Time until Salesforce's retention reaches the stored position", ["connection", "channel"]
)


def observe_all(series: Histogram, values: Sequence[float]) -> None:
    """As `observe` for each; the library's own takes a microsecond a value, most of it for locks."""
    counts = [0] * len(series._buckets)
    for value in values:
        counts[bisect_left(series._upper_bounds, value)] += 1
    series._sum.inc(sum(values))
    for bucket, count in zip(series._buckets, counts, strict=True):
        if count:
            bucket.inc(count)
