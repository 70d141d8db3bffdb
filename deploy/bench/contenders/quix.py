"""Quix Streams with its PostgreSQL sink. Runs with a Python of its own, so it imports nothing of the house: SPEC as in spec.py."""

import json
import sys
from urllib.parse import unquote, urlsplit

import psycopg2
from psycopg2 import sql
from quixstreams import Application
from quixstreams.sinks.community import postgresql


def make_table(given: dict[str, str]) -> None:
    """The sink looks its primary key up by the constraint's name in all schemas, and takes another contender's person_pkey for its own."""
    with psycopg2.connect(given["dsn"]) as connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL('CREATE TABLE {} ({} timestamp NOT NULL, {} text, "externalId" text CONSTRAINT {} PRIMARY KEY)').format(
                sql.Identifier(given["schema"], "person"),
                sql.Identifier(postgresql.TIMESTAMP_COLUMN_NAME),
                sql.Identifier(postgresql.KEY_COLUMN_NAME),
                sql.Identifier(f"{given['schema']}-key"),
            )
        )


def main() -> None:
    """Until killed."""
    given = json.loads(sys.argv[1])
    where = urlsplit(given["dsn"])
    app = Application(
        broker_address=given["bootstrap"], consumer_group=given["name"], auto_offset_reset="earliest", auto_create_topics=False,
        commit_every=3000,
        commit_interval=0.2, state_dir=given["state"], loglevel="WARNING",
    )  # fmt: skip
    make_table(given)
    sink = postgresql.PostgreSQLSink(
        host=where.hostname, port=where.port, dbname=where.path.lstrip("/"), user=unquote(where.username or ""),
        password=unquote(where.password or ""), schema_name=given["schema"], table_name="person", schema_auto_update=True,
        primary_key_columns="externalId", upsert_on_primary_key=True,
    )  # fmt: skip
    app.dataframe(app.topic(given["source"], value_deserializer="json", key_deserializer="str")).sink(sink)
    app.run()


if __name__ == "__main__":
    main()
