"""Quix Streams with its PostgreSQL sink. Runs with a Python of its own, so it imports nothing of the house: SPEC as in spec.py."""

import json
import sys
from urllib.parse import unquote, urlsplit

from quixstreams import Application  # type: ignore[import-not-found]
from quixstreams.sinks.community.postgresql import PostgreSQLSink  # type: ignore[import-not-found]


def main() -> None:
    """Until killed."""
    given = json.loads(sys.argv[1])
    where = urlsplit(given["dsn"])
    app = Application(
        broker_address=given["bootstrap"], consumer_group=given["name"], auto_offset_reset="earliest", auto_create_topics=False,
        commit_every=3000,
        commit_interval=0.2, state_dir=given["state"], loglevel="WARNING",
    )  # fmt: skip
    sink = PostgreSQLSink(
        host=where.hostname, port=where.port, dbname=where.path.lstrip("/"), user=unquote(where.username or ""),
        password=unquote(where.password or ""), schema_name=given["schema"], table_name="person", schema_auto_update=True,
        primary_key_columns="externalId", upsert_on_primary_key=True,
    )  # fmt: skip
    app.dataframe(app.topic(given["source"], value_deserializer="json", key_deserializer="str")).sink(sink)
    app.run()


if __name__ == "__main__":
    main()
