"""`python -m deploy.local [FOLDER]`: a Kafka and a PostgreSQL for a developer's shell until Ctrl-C; prints what to export."""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from deploy.local import LocalServiceError, LocalServices, exit_on_sigterm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(".headrace/dev"))
    parser.add_argument("--kafka-port", type=int)
    parser.add_argument("--postgres-port", type=int)
    parser.add_argument("--heap", default="512m")
    given = parser.parse_args()
    services = LocalServices(given.folder, kafka_port=given.kafka_port, postgres_port=given.postgres_port, heap=given.heap)
    exit_on_sigterm()
    try:
        with services:
            endpoints = services.start(progress=lambda text: print(text, file=sys.stderr))
            for name, value in endpoints.environment().items():
                print(f"export {name}={shlex.quote(value)}", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except LocalServiceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
