"""A process whose /metrics has a growing sample of every metric of ours: what a busy installation would show. Prints its address."""

import itertools
import time

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from streams import metrics

VALUES = {"since": ("commit", "received")}
"""Values that dashboards ask for by name; every other label is "x"."""


def main() -> None:
    """Serve until killed."""
    server, _ = start_http_server(0, addr="127.0.0.1")
    print(f"127.0.0.1:{server.server_port}", flush=True)
    listed = [metric for metric in vars(metrics).values() if isinstance(metric, Counter | Gauge | Histogram)]
    while True:
        for metric in listed:
            for labels in itertools.product(*(VALUES.get(name, ("x",)) for name in metric._labelnames)):
                child = metric.labels(*labels) if labels else metric
                if isinstance(child, Histogram):
                    child.observe(0.2)
                elif isinstance(child, Counter):
                    child.inc()
                else:
                    child.set(1)
        time.sleep(0.5)


if __name__ == "__main__":
    main()
